// Powers of two on the units that multiply and add, beside those of the unit for special functions.
#pragma once

/// 2^x for x ≤ 127 within 7.5e-5 of its value, a quarter of bf16's last place; 0 below 2^-126, and NaN stays NaN. A
/// special-function unit makes one exponential a thread in 8 cycles; these nine instructions go elsewhere meanwhile.
///
/// x = n + f with n the nearest integer: 2^f is the cubic of the least largest relative error on [-1/2, 1/2] (Remez).
__device__ __forceinline__ float exp2_polynomial(float x) {
    // The sum's last bits are n + 127, the exponent of 2^n; at -127 that is the float 0.
    constexpr float TO_BITS = 12582912.0f + 127.0f;
    float bounded;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(bounded) : "f"(x), "f"(-127.0f));
    const float shifted = bounded + TO_BITS;
    const float f = bounded - (shifted - TO_BITS);
    const float power = fmaf(fmaf(fmaf(0.05517167f, f, 0.24261113f), f, 0.69326097f), f, 0.99992806f);
    return power * __int_as_float(__float_as_int(shifted) << 23);
}
