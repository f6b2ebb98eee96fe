"""A video transformer of Wan's architecture, with random weights, dense and sparse.

    python python/examples/video_transformer.py                  # on a GPU: Wan 2.1 1.3B's sizes at 480p, six layers of thirty
    python python/examples/video_transformer.py --tiny           # anywhere
    python python/examples/video_transformer.py --grid none      # tokens in raster order

Prints the time of a denoising step, the sparsity and how far the sparse output is from the dense one. Attention of random weights is
diffuse: the difference says that the model runs, not what sparsity costs a trained one.
"""

import argparse
import time

import torch
from diffusers import WanTransformer3DModel
from diffusers.utils import logging

import tilewright.diffusers

# frames, height and width of the latent video; heads, head dimension, layers
SIZES = {"480p": ((21, 60, 104), 12, 128, 6), "tiny": ((5, 24, 28), 2, 64, 2)}


def model_and_inputs(size, device):
    latents, heads, head_dim, layers = SIZES[size]
    torch.manual_seed(1)
    width = heads * head_dim
    with torch.device(device):  # a large model's random weights take a minute on the CPU
        model = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=head_dim, text_dim=512, freq_dim=256, ffn_dim=6 * width, num_layers=layers
        )
    inputs = {
        "hidden_states": torch.randn(1, 16, *latents, device=device, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, 512, 512, device=device, dtype=torch.bfloat16),
        "timestep": torch.tensor([900], device=device),
    }
    return model.to(device, torch.bfloat16).eval(), inputs


@torch.no_grad()
def step(model, inputs, calls):
    """The output, and the least time of a step in ms; the first call compiles and tunes."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    out = model(**inputs).sample.float()
    times = []
    for _ in range(calls):
        wait()
        begin = time.perf_counter()
        model(**inputs)
        wait()
        times.append(time.perf_counter() - begin)
    return out, 1e3 * min(times, default=0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a machine without a GPU")
    parser.add_argument("--top-k", type=float, default=0.03, help="share of blocks to keep (default %(default)s)")
    parser.add_argument("--top-p", type=float, default=0.2, help="share of mass to keep (default %(default)s)")
    parser.add_argument("--grid", choices=["auto", "none"], default="auto", help="regroup tokens into cubes (default), or not")
    options = parser.parse_args()
    logging.set_verbosity_error()  # it warns of casting to bfloat16 what checkpoints keep in float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = "tiny" if options.tiny or device == "cpu" else "480p"
    calls = 5 if device == "cuda" else 3

    model, inputs = model_and_inputs(size, device)
    (t, h, w), heads, head_dim, layers = SIZES[size]
    print(f"{layers} layers of {heads} heads of {head_dim}, {t}×{h // 2}×{w // 2} = {t * h * w // 4} tokens, on {device}")

    dense, dense_ms = step(model, inputs, calls)
    grid = None if options.grid == "none" else "auto"
    with tilewright.diffusers.enable(model, top_k=options.top_k, top_p=options.top_p, grid=grid, min_tokens=512) as enabled:
        sparse, sparse_ms = step(model, inputs, calls)
        report = enabled.report()
    with tilewright.diffusers.enable(model, top_k=1.0, top_p=None, grid=grid, min_tokens=512):
        whole, _ = step(model, inputs, 0)  # without the cut, for the rounding alone

    difference = lambda out: float((out - dense).norm() / dense.norm())  # noqa: E731
    print(f"dense   {dense_ms:8.1f} ms a step")
    print(f"sparse  {sparse_ms:8.1f} ms a step, {dense_ms / sparse_ms:.2f}× as fast; {report}")
    print(f"relative difference to dense: {difference(sparse):.1e}; with all blocks kept {difference(whole):.1e}")


if __name__ == "__main__":
    main()
