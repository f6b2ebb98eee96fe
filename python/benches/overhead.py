"""What a warm call costs the host: `python python/benches/overhead.py`.

On a GPU the shapes are small, so that the queue never fills up and the host is what is timed; the calls come in short bursts with
a wait between them. The calls take turns, a series each, so that a host that is slow for a while is slow for all. Median and range of 15
series.
"""

import statistics
import time

import torch

import tilewright

BURST, BURSTS, SERIES = 50, 20, 15


def report(calls):
    """`calls`: by name."""
    series = {what: [] for what in calls}
    for turn in range(SERIES + 1):
        for what, call in calls.items():
            host = 0.0
            for _ in range(BURSTS):
                start = time.perf_counter()
                for _ in range(BURST):
                    call()
                host += time.perf_counter() - start
                torch.cuda.synchronize()
            if turn > 0:  # the first warms up
                series[what].append(1e6 * host / (BURST * BURSTS))
    for what, times in series.items():
        print(f"  {what:<58} {statistics.median(times):6.2f} µs ({min(times):.2f} to {max(times):.2f})")


def main():
    if not torch.cuda.is_available():
        print("skipped: no GPU (on the CPU a call computes, so that its overhead does not show)")
        return
    print(f"{tilewright.gpu_name(0)}, PyTorch {torch.__version__}, host time a call, median and range of {SERIES} series")
    for shape in ((1, 1, 128, 64), (1, 12, 1024, 128)):
        q, k, v = (torch.randn(shape, device="cuda").bfloat16() for _ in range(3))
        mask = tilewright.block_mask(q, k)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        print(f"q, k, v {list(shape)}")
        for _ in range(3):
            tilewright.sparse_attention(q, k, v)
        operator = torch.ops.tilewright.sparse_attention.default

        def in_inference_mode():
            with torch.inference_mode():
                return tilewright.sparse_attention(q, k, v)

        report({
            "tilewright.sparse_attention": lambda: tilewright.sparse_attention(q, k, v),
            "… with return_lse": lambda: tilewright.sparse_attention(q, k, v, return_lse=True),
            "… through the operator": lambda: operator(q, k, v, 0.03, 0.2, 128, 64, None, 0, 0, False),
            "… with the tail of a row": lambda: tilewright.sparse_attention(q, k, v, tail="row"),
            "… in inference mode, entered for each call": in_inference_mode,
            "tilewright.attention (one launch)": lambda: tilewright.attention(q, k, v, mask),
            "tilewright.block_mask": lambda: tilewright.block_mask(q, k),
            "scaled_dot_product_attention, for comparison": lambda: sdpa(q, k, v),
        })


if __name__ == "__main__":
    main()
