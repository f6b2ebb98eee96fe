// What device functions call: total versions of what Rust may panic on, and Rust's casts.

namespace tw {
#define TW_FN __device__ __forceinline__

// Signed arithmetic wraps: C++ defines overflow for unsigned types only.
TW_FN int add(int a, int b) { return (int)((unsigned)a + (unsigned)b); }
TW_FN int sub(int a, int b) { return (int)((unsigned)a - (unsigned)b); }
TW_FN int mul(int a, int b) { return (int)((unsigned)a * (unsigned)b); }
TW_FN int neg(int a) { return (int)(0u - (unsigned)a); }
TW_FN int abs(int a) { return a < 0 ? neg(a) : a; }
TW_FN long long add(long long a, long long b) { return (long long)((unsigned long long)a + (unsigned long long)b); }
TW_FN long long sub(long long a, long long b) { return (long long)((unsigned long long)a - (unsigned long long)b); }
TW_FN long long mul(long long a, long long b) { return (long long)((unsigned long long)a * (unsigned long long)b); }
TW_FN long long neg(long long a) { return (long long)(0ull - (unsigned long long)a); }
TW_FN long long abs(long long a) { return a < 0 ? neg(a) : a; }

// By zero: 0. The smallest value by -1: wraps, remainder 0.
TW_FN unsigned div(unsigned a, unsigned b) { return b == 0 ? 0 : a / b; }
TW_FN unsigned rem(unsigned a, unsigned b) { return b == 0 ? 0 : a % b; }
TW_FN unsigned long long div(unsigned long long a, unsigned long long b) { return b == 0 ? 0 : a / b; }
TW_FN unsigned long long rem(unsigned long long a, unsigned long long b) { return b == 0 ? 0 : a % b; }
TW_FN int div(int a, int b) { return b == 0 ? 0 : b == -1 ? neg(a) : a / b; }
TW_FN int rem(int a, int b) { return b == 0 || b == -1 ? 0 : a % b; }
TW_FN long long div(long long a, long long b) { return b == 0 ? 0 : b == -1 ? neg(a) : a / b; }
TW_FN long long rem(long long a, long long b) { return b == 0 || b == -1 ? 0 : a % b; }

template <typename T> TW_FN T min(T a, T b) { return b < a ? b : a; }
template <typename T> TW_FN T max(T a, T b) { return a < b ? b : a; }

// Casts saturate and take NaN to 0. The bounds are the first floats out of range.
TW_FN int to_i32(float x) {
    return x != x ? 0 : x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? (-2147483647 - 1) : (int)x;
}
TW_FN unsigned to_u32(float x) {
    return !(x > 0.0f) ? 0u : x >= 4294967296.0f ? 4294967295u : (unsigned)x;
}
TW_FN long long to_i64(float x) {
    return x != x                         ? 0ll
           : x >= 9223372036854775808.0f  ? 9223372036854775807ll
           : x < -9223372036854775808.0f ? (-9223372036854775807ll - 1ll)
                                          : (long long)x;
}
TW_FN unsigned long long to_usize(float x) {
    return !(x > 0.0f) ? 0ull : x >= 18446744073709551616.0f ? 18446744073709551615ull : (unsigned long long)x;
}

// An index out of range reads zero.
template <typename T> TW_FN T read(const T* values, int length, unsigned long long index) {
    return index < (unsigned long long)length ? values[index] : T(0);
}

TW_FN float powi(float x, int n) {
    unsigned exponent = n < 0 ? 0u - (unsigned)n : (unsigned)n;
    float power = 1.0f;
    for (; exponent != 0; exponent >>= 1) {
        if (exponent & 1) power *= x;
        x *= x;
    }
    return n < 0 ? 1.0f / power : power;
}

#undef TW_FN
}  // namespace tw
