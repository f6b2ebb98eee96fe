// What a block's score may be: a NaN counts as -inf, everything else is clamped to a finite range.

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

/// The largest magnitude of a logit: the difference of two stays finite.
constexpr float LARGEST_LOGIT = 3e38f;

__device__ __forceinline__ float sanitised(float logit) {
    return logit != logit ? minus_infinity() : fminf(fmaxf(logit, -LARGEST_LOGIT), LARGEST_LOGIT);
}
