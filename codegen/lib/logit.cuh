// What a block's score may be: a NaN counts as -inf, everything else is clamped to a finite range.

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float sanitised(float logit) {
    constexpr float LIMIT = 3e38f;
    return logit != logit ? minus_infinity() : fminf(fmaxf(logit, -LIMIT), LIMIT);
}
