"""Dense attention through PyTorch on the workloads of `benches/attention.rs`, to relate its figures to.

    python3 benches/dense_peers.py

Prints the median of 30 forward calls for the cuDNN and the FlashAttention 2 backend of scaled_dot_product_attention.
"""

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

WORKLOADS = [("Wan 480p", 12, 32_760, 128), ("Wan 720p", 10, 75_600, 128), ("CogVideoX", 30, 17_776, 64)]
BACKENDS = [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention 2", SDPBackend.FLASH_ATTENTION)]
CALLS = 30


def median_ms(call):
    for _ in range(5):
        call()
    times = []
    for _ in range(CALLS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def main():
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, bf16, median of {CALLS} calls")
    for name, heads, seq, d in WORKLOADS:
        generator = torch.Generator(device="cuda").manual_seed(1)
        q, k, v = (
            torch.randn(1, heads, seq, d, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(3)
        )
        flops = 4 * heads * seq * seq * d
        for backend, which in BACKENDS:
            with sdpa_kernel(which):
                ms = median_ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
            print(f"  {name:<10} {backend:<16} dense {ms:8.3f} ms  {flops / ms / 1e9:6.0f} TF/s")


if __name__ == "__main__":
    main()
