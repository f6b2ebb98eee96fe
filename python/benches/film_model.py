"""The model and the data of `whole_model.py`: a small video transformer in pixel space, and clips of one short film.

The model predicts the velocity of a straight path from a clip to noise (rectified flow). Its tokens are patches of
2 × 8 × 8 pixels with a rotary embedding in three dimensions; each block is modulated by the time, as in DiT. Nothing is
pretrained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tilewright
from tilewright._typing import Scores, Tail

PATCH = (2, 8, 8)
CHANNELS = 3
# What stands for dropped blocks and what blocks are scored by, as `tilewright.sparse_attention` takes both, by the name
# that the results have.
TAILS: dict[str, tuple[Tail, Scores]] = {
    "none": (None, "means"),
    "block": ("block", "means"),
    "row64": (("row", 64), "means"),
    "row128": (("row", 128), "means"),
    "block-keys": ("block", "keys"),
    "row128-keys": (("row", 128), "keys"),
}
BLOCK_KV = 64

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """A clip in pixels, the transformer, and the clips of a training step."""

    frames: int
    height: int
    width: int
    heads: int
    head_dim: int
    layers: int
    batch: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        return self.frames // PATCH[0], self.height // PATCH[1], self.width // PATCH[2]

    @property
    def width_of_tokens(self) -> int:
        return self.heads * self.head_dim


SIZES = {"full": Sizes(16, 128, 224, 6, 128, 8, 8), "tiny": Sizes(8, 64, 64, 2, 64, 2, 2)}


# ---- the film ------------------------------------------------------------------------------------------------------


def frames_of(path: str) -> np.ndarray:
    """RGB frames, uint8 `[frames, height, width, 3]`: those of a `.npy`, or of a video, scaled to 360 × 630."""
    if path.endswith(".npy"):
        decoded: np.ndarray = np.load(path)
        return decoded
    import cv2

    capture, frames = cv2.VideoCapture(path), []
    while True:
        found, frame = capture.read()
        if not found:
            break
        frames.append(cv2.resize(frame, (630, 360), interpolation=cv2.INTER_AREA)[..., ::-1])
    if not frames:
        raise SystemExit(
            f"{path} has no frame that OpenCV can read: give a video, or a .npy of uint8 [frames, height, width, 3]"
        )
    return np.stack(frames)


class Film:
    """Clips at random places of a film."""

    def __init__(self, path: str, sizes: Sizes, device: str) -> None:
        self.sizes = sizes
        self.frames = torch.from_numpy(frames_of(path)).permute(0, 3, 1, 2).contiguous().to(device)

    def clip(self, random: Random) -> Tensor:
        """`[3, frames, height, width]` between -1 and 1: every frame or every second, mirrored or not, whole or cut."""
        total, _, height, width = self.frames.shape
        stride = random.choice([1, 2])
        first = random.randint(0, total - (self.sizes.frames - 1) * stride - 1)
        y, x, h, w = 0, 0, height, width
        if random.random() < 0.75:
            scale = random.uniform(0.36, 1.0)
            h, w = round(height * scale), round(width * scale)
            y, x = random.randint(0, height - h), random.randint(0, width - w)
        last = first + (self.sizes.frames - 1) * stride
        frames = self.frames[first : last + 1 : stride, :, y : y + h, x : x + w].float() / 127.5 - 1
        frames = F.interpolate(frames, size=(self.sizes.height, self.sizes.width), mode="bilinear", antialias=True)
        if random.random() < 0.5:
            frames = frames.flip(-1)
        return frames.transpose(0, 1)


@dataclass
class Examples:
    """Clips on their way to noise, how far they are (0: the clip, 1: noise), and their velocities."""

    noisy: Tensor
    time: Tensor
    velocity: Tensor


def mix(clips: Tensor, time: Tensor, generator: torch.Generator) -> Examples:
    """The clips `[batch, 3, frames, height, width]`, each mixed with new noise as far as its time says."""
    noise = torch.randn(clips.shape, device=clips.device, generator=generator)
    t = time.view(-1, 1, 1, 1, 1)
    return Examples((1 - t) * clips + t * noise, time, noise - clips)


def random_examples(film: Film, count: int, random: Random, generator: torch.Generator) -> Examples:
    """Clips and times as the model is trained on them."""
    clips = torch.stack([film.clip(random) for _ in range(count)])
    time = torch.sigmoid(torch.randn(count, device=clips.device, generator=generator))
    return mix(clips, time, generator)


# ---- the attention -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What is kept, in which order of the tokens, and what stands for the rest, with the scores (a key of `TAILS`)."""

    order: str
    top_k: float
    top_p: Optional[float]
    tail: str

    def __str__(self) -> str:
        both = f"{self.top_k:g}" if self.top_p is None else f"{self.top_k:g} ∪ top-p {self.top_p:g}"
        return f"{self.order:6} top-k {both:16} tail {self.tail:11}"


class Sparse:
    """Attention by a rule. With `counting` it also notes the share of the blocks that it keeps."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.counting = False
        self.shares: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        top_k, top_p = self.rule.top_k, self.rule.top_p
        tail, scores = TAILS[self.rule.tail]
        if self.counting:
            mask = tilewright.block_mask(q, k, top_k=top_k, top_p=top_p, scores=scores, dropped=False)
            self.shares.append(mask.row_counts().float().mean() / math.ceil(k.shape[2] / BLOCK_KV))
        return tilewright.sparse_attention(q, k, v, top_k=top_k, top_p=top_p, tail=tail, scores=scores)

    def kept(self) -> float:
        """The mean of the noted shares."""
        return float(torch.stack(self.shares).mean())


# ---- the transformer -----------------------------------------------------------------------------------------------


def rotary(grid: tuple[int, int, int], head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[tokens, head_dim / 2]`; a third of the pairs turns along each of t, h and w."""
    third = head_dim // 6
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [
        axis.flatten()[:, None] * 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        for axis, pairs in zip(axes, (head_dim // 2 - 2 * third, third, third))
    ]
    together = torch.cat(angles, dim=1)
    return together.cos().float(), together.sin().float()


def normed_and_turned(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS norm of each head, then the rotary embedding; bf16."""
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(torch.bfloat16)


def block(
    x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor, weights: tuple[Tensor, ...], attend: Attend
) -> Tensor:
    """One block of the transformer. A function of its weights, so that it is compiled once for all layers."""
    modulation, modulation_bias, qkv, q_norm, k_norm, out, up, up_bias, down, down_bias = weights
    batch, tokens, width = x.shape
    modulated = F.linear(F.silu(condition), modulation, modulation_bias).float()[:, None]
    scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = modulated.chunk(6, -1)
    y = F.layer_norm(x, (width,)) * (1 + scale_1) + shift_1
    q, k, v = F.linear(y, qkv).view(batch, tokens, 3, -1, q_norm.shape[0]).permute(2, 0, 3, 1, 4)
    q, k = normed_and_turned(q, q_norm, cos, sin), normed_and_turned(k, k_norm, cos, sin)
    y = attend(q, k, v.to(torch.bfloat16)).transpose(1, 2).reshape(batch, tokens, width)
    x = x + gate_1 * F.linear(y, out).float()
    y = F.layer_norm(x, (width,)) * (1 + scale_2) + shift_2
    return x + gate_2 * F.linear(F.gelu(F.linear(y, up, up_bias), approximate="tanh"), down, down_bias).float()


class VideoTransformer(nn.Module):
    """Velocities of noisy clips. Every layer of a call attends densely, or by one rule."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, patch = sizes.width_of_tokens, CHANNELS * math.prod(PATCH)
        self.sizes = sizes
        self.tokens = tilewright.TokenGrid(sizes.grid)
        self.inward, self.outward = nn.Linear(patch, width), nn.Linear(width, patch)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.last = nn.Linear(width, 2 * width)
        for linear in (self.last, self.outward):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers = [nn.ParameterList(_weights(width, sizes.head_dim)) for _ in range(sizes.layers)]
        self.layers: list[nn.ParameterList] = nn.ModuleList(layers)  # type: ignore[assignment]
        cos, sin = rotary(sizes.grid, sizes.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, noisy: Tensor, time: Tensor, sparse: Optional[Sparse] = None, block: Callable[..., Tensor] = block
    ) -> Tensor:
        """The velocity of each clip; `block` may be a compiled one."""
        cubes = sparse is not None and sparse.rule.order == "cubes"
        attend: Attend = F.scaled_dot_product_attention if sparse is None else sparse
        x, cos, sin = _patches(noisy, self.sizes.grid), self.cos, self.sin
        if cubes:
            x = self.tokens.regroup(x, dim=1)
            cos, sin = (self.tokens.regroup(table, dim=0) for table in (cos, sin))
        angles = torch.exp(-math.log(1e4) * torch.arange(128, device=x.device) / 128) * (1000 * time[:, None])
        condition = self.time(torch.cat([angles.cos(), angles.sin()], -1)).float()
        x = self.inward(x).float()
        for weights in self.layers:
            x = block(x, condition, cos, sin, tuple(weights), attend)
        scale, shift = self.last(F.silu(condition)).float()[:, None].chunk(2, -1)
        x = self.outward(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift).float()
        return _pixels(self.tokens.restore(x, dim=1) if cubes else x, self.sizes.grid)


def _weights(width: int, head_dim: int) -> list[nn.Parameter]:
    """Those of `block`. Zero modulation makes each block the identity at first."""

    def random(rows: int, columns: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(rows, columns) / math.sqrt(columns))

    def constant(value: float, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.full(shape, value))

    return [
        constant(0.0, 6 * width, width),
        constant(0.0, 6 * width),
        random(3 * width, width),
        constant(1.0, head_dim),
        constant(1.0, head_dim),
        random(width, width),
        random(4 * width, width),
        constant(0.0, 4 * width),
        random(width, 4 * width),
        constant(0.0, width),
    ]


def _patches(video: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """`[batch, 3, frames, height, width]` as tokens `[batch, tokens, 3 · 2 · 8 · 8]` in raster order."""
    (t, h, w), (frames, rows, columns) = grid, PATCH
    split = video.reshape(-1, CHANNELS, t, frames, h, rows, w, columns)
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, t * h * w, CHANNELS * math.prod(PATCH))


def _pixels(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The inverse of `_patches`."""
    (t, h, w), (frames, rows, columns) = grid, PATCH
    split = tokens.reshape(-1, t, h, w, CHANNELS, frames, rows, columns)
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(-1, CHANNELS, t * frames, h * rows, w * columns)
