"""A small video denoiser trained twice from the same weights, with dense and with sparse attention; the losses side by side.

    python python/examples/training.py                      # 200 steps on a GPU, half a minute
    python python/examples/training.py --tiny --steps 20    # anywhere
    python python/examples/training.py --plot losses.svg    # needs matplotlib

The videos are waves that drift through noise; the model learns the velocity of a straight path from noise to video, as flow matching
does. What is trained sparse never sees dense attention.
"""

import argparse
import math
import time

import torch
from torch import nn
from torch.nn import functional as F

import tilewright

# frames, height and width of the latent video; heads, head dimension, layers, batch
SIZES = {"small": ((8, 32, 32), 6, 64, 4, 2), "tiny": ((2, 12, 12), 2, 64, 1, 1)}
CHANNELS = 8


class Layer(nn.Module):
    def __init__(self, heads, head_dim, attend):
        super().__init__()
        width = heads * head_dim
        self.heads, self.attend = heads, attend
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Denoiser(nn.Module):
    def __init__(self, size, attend):
        super().__init__()
        grid, heads, head_dim, layers, _ = SIZES[size]
        width = heads * head_dim
        self.position = nn.Parameter(torch.randn(1, math.prod(grid), width) * 0.02)
        self.inward, self.time = nn.Linear(CHANNELS, width), nn.Linear(1, width)
        self.layers = nn.ModuleList([Layer(heads, head_dim, attend) for _ in range(layers)])
        self.outward = nn.Linear(width, CHANNELS)

    def forward(self, x, t):
        x = self.inward(x) + self.time(t) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.outward(x)


def videos(size, device, generator):
    """Waves of random directions and speeds, `[batch, tokens, channels]`."""
    grid, *_, batch = SIZES[size]
    axes = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    speeds = torch.randn(batch, 3, CHANNELS, device=device, generator=generator) * 0.4
    phase = torch.rand(batch, 1, CHANNELS, device=device, generator=generator) * 2 * math.pi
    return torch.sin(torch.stack(axes, dim=-1).flatten(0, 2) @ speeds + phase)


def train(size, attend, steps, device):
    torch.manual_seed(0)
    model = Denoiser(size, attend).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator(device).manual_seed(1)  # the same videos and noise for both
    losses = []
    begin = time.perf_counter()
    for _ in range(steps):
        video = videos(size, device, generator)
        noise = torch.randn(video.shape, device=device, generator=generator)
        t = torch.rand(video.shape[0], 1, 1, device=device, generator=generator)
        with torch.autocast(device, dtype=torch.bfloat16):
            velocity = model(t * video + (1 - t) * noise, t)
        loss = (velocity.float() - (video - noise)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    losses = torch.stack(losses).tolist()
    return losses, time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a size for any machine")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--top-k", type=float, default=0.1)
    parser.add_argument("--top-p", type=float, default=0.2)
    parser.add_argument("--plot", metavar="FILE", help="draw the losses (needs matplotlib)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = "tiny" if options.tiny else "small"

    def sparse(q, k, v):
        return tilewright.sparse_attention(q, k, v, top_k=options.top_k, top_p=options.top_p)

    runs = {}
    for name, attend in (("dense", F.scaled_dot_product_attention), ("sparse", sparse)):
        runs[name], seconds = train(size, attend, options.steps, device)
        print(f"{name}: {options.steps} steps in {seconds:.1f} s")
    print("\n step    dense   sparse")
    window = max(1, options.steps // 10)
    for step in range(0, options.steps, window):
        means = [sum(losses[step : step + window]) / len(losses[step : step + window]) for losses in runs.values()]
        print(f"{step:5}  " + "  ".join(f"{mean:7.4f}" for mean in means))
    if options.plot:
        from matplotlib import pyplot

        _, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True)
        for axis, (name, losses) in zip(axes, runs.items()):
            axis.plot(losses, linewidth=1)
            axis.set(title=name, xlabel="step", yscale="log")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("loss")
        pyplot.savefig(options.plot, bbox_inches="tight")


if __name__ == "__main__":
    main()
