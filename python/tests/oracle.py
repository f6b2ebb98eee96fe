"""Attention in float64 over an expanded block mask, and the selection rule, both with numpy alone."""

import numpy as np


def expand(block_map, block_size, seqs):
    """A block map `[b, h, q_blocks, kv_blocks]` as a map of elements `[b, h, seq_q, seq_kv]`."""
    rows = np.repeat(block_map, block_size[0], axis=-2)[..., : seqs[0], :]
    return np.repeat(rows, block_size[1], axis=-1)[..., : seqs[1]]


def attend(q, k, v, keep, scale=None):
    """`(out, lse)` in float64 of q `[b, h, s, d]` and k, v `[b, kv_heads, t, d]` over the elements of `keep` (broadcast)."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = np.where(keep, q @ k.swapaxes(-1, -2) * scale, -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = np.where(total > 0, weights @ v / np.where(total > 0, total, 1), 0)
    with np.errstate(divide="ignore"):
        return out, (np.log(total) + top)[..., 0]


def select(q, k, block_size, top_k, top_p, scale=None, keys=None):
    """The blocks that top-k or top-p keeps: bool `[b, h, q_blocks, kv_blocks]`.

    A block's score is that of its mean key, or with `keys` the best of those of the means of so many neighbours each.
    """
    q, k = (np.asarray(x, dtype=np.float64) for x in (q, k))
    means = []
    for x, block in ((q, block_size[0]), (k, keys or block_size[1])):
        starts = range(0, x.shape[2], block)
        means.append(np.stack([x[:, :, s : s + block].mean(axis=2) for s in starts], axis=2))
    mean_q, mean_k = means[0], np.repeat(means[1], q.shape[1] // k.shape[1], axis=1)
    scores = mean_q @ mean_k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if keys is not None:
        scores = np.maximum.reduceat(scores, range(0, scores.shape[-1], block_size[1] // keys), axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    order = np.argsort(-weights, axis=-1, kind="stable")
    mass = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)
    n = weights.shape[-1]
    count = np.ones(weights.shape[:-1], dtype=int)
    if top_k is not None:
        count = np.maximum(count, int(np.ceil(np.float32(top_k) * n - 1e-6)))
    if top_p is not None:
        count = np.maximum(count, (mass < top_p - 1e-9).sum(axis=-1) + 1)
    keep = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(keep, order, np.arange(n) < count[..., None], axis=-1)
    return keep


def distance(found, expected):
    """‖found − expected‖ / ‖expected‖; NaN where one is not finite."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)
