// The online softmax of a computing warpgroup.

// The running maximum may lag behind the true one by this much (in powers of two) before the output is rescaled:
// exponentials then reach 256 at most, and after the first step a rescale is rare.
constexpr float MAX_LAG = 8.0f;

// The maximum of a row that has met no key: finite, so that a masked score's exponential is 0 and never NaN.
constexpr float LOWEST = -3.402823466e38f;

/// Maximum and sum of exponentials of the two rows whose scores this thread has; what the output must be multiplied by.
struct Softmax {
    float max[2];     // base-2 exponent units
    float sum[2];     // this lane's share
    float factor[2];

    /// Raises the maxima to cover these scores, if any row of the warp lags; says whether it did.
    __device__ __forceinline__ bool raise(const Scores& scores, float to_exponent) {
        float top[2];  // of this lane's scores: enough to see that nothing lags
        bool lagging = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float some[2] = {scores[0][2 * half], scores[0][2 * half + 1]};
#pragma unroll
            for (int n = 1; n < STEP_KV / 8; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) some[i] = fmaxf(some[i], scores[n][2 * half + i]);
            top[half] = fmaxf(some[0], some[1]);
            lagging |= fmaf(top[half], to_exponent, -max[half]) > MAX_LAG;
        }
        if (!__any_sync(0xffffffffu, lagging)) return false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float raised = fmaxf(max[half], quad_max(top[half]) * to_exponent);
            factor[half] = exp2_approx(max[half] - raised);
            max[half] = raised;
            sum[half] *= factor[half];
        }
        return true;
    }

    /// Turns scores into exponentials and adds them up.
    __device__ __forceinline__ void exponentiate(Scores& scores, float to_exponent) {
        float more[2][2] = {};
#pragma unroll
        for (int n = 0; n < STEP_KV / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                scores[n][i] = exp2_approx(fmaf(scores[n][i], to_exponent, -max[i / 2]));
                more[i / 2][i % 2] += scores[n][i];
            }
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] += more[half][0] + more[half][1];
    }

    __device__ __forceinline__ void rescale(Output& out) const {
#pragma unroll
        for (int n = 0; n < D_V / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) out[n][i] *= factor[i / 2];
    }
};
