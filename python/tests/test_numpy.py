"""numpy arrays on the CPU executor; PyTorch is not needed."""

import subprocess
import sys

import numpy as np
import pytest
from oracle import attend, distance, expand, select

import tilewright


def noise(seed, *shape, dtype=np.float16):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "kv_shape", "block_size"),
    [
        ((1, 2, 300, 64), (1, 2, 300, 64), (128, 64)),
        ((2, 4, 257, 72), (2, 2, 130, 72), (64, 64)),
        ((1, 1, 1, 128), (1, 1, 1000, 128), (128, 128)),
        ((1, 3, 500, 8), (1, 1, 77, 8), (64, 128)),
    ],
)
@pytest.mark.parametrize(("top_k", "top_p"), [(0.3, 0.5), (0.3, None), (None, 0.5), (1.0, None)])
def test_selection_and_attention(shape, kv_shape, block_size, top_k, top_p):
    q, k, v = noise(1, *shape), noise(2, *kv_shape), noise(3, *kv_shape)
    out, lse, mask = tilewright.sparse_attention(
        q,
        k,
        v,
        top_k=top_k,
        top_p=top_p,
        block_size=block_size,
        enable_gqa=True,
        return_lse=True,
        return_mask=True,
    )
    seqs = (shape[2], kv_shape[2])
    assert (mask.to_dense() == select(q, k, block_size, top_k, top_p)).all()
    expected, expected_lse = attend(q, k, v, expand(mask.to_dense(), block_size, seqs))
    assert out.dtype == np.float16 and out.shape == shape
    assert distance(out, expected) < 1e-3
    assert np.abs(lse - expected_lse).max() < 1e-3


def test_values_of_another_width():
    q, k, v = noise(1, 1, 2, 300, 64), noise(2, 1, 2, 200, 64), noise(3, 1, 2, 200, 24)
    out, lse, mask = tilewright.sparse_attention(q, k, v, top_k=0.4, return_lse=True, return_mask=True)
    expected, expected_lse = attend(q, k, v, expand(mask.to_dense(), (128, 64), (300, 200)))
    assert out.dtype == np.float16 and out.shape == (1, 2, 300, 24)
    assert distance(out, expected) < 1e-3 and np.abs(lse - expected_lse).max() < 1e-3


def test_bfloat16_of_ml_dtypes():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    q, k, v = (noise(seed, 1, 2, 200, 64, dtype=np.float32).astype(bfloat16) for seed in (1, 2, 3))
    out = tilewright.sparse_attention(q, k, v, top_k=1.0)
    assert out.dtype == bfloat16
    assert distance(out, attend(q, k, v, True)[0]) < 1e-2


def test_layouts_and_strides_need_no_contiguous_arrays():
    q, k, v = (noise(seed, 2, 300, 4, 64) for seed in (1, 2, 3))
    out = tilewright.sparse_attention(q, k, v, top_k=0.3, layout="BSHD")
    plain = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v)]
    assert (out.swapaxes(1, 2) == tilewright.sparse_attention(*plain, top_k=0.3)).all()
    views = [x.swapaxes(1, 2) for x in (q, k, v)]
    assert (tilewright.sparse_attention(*views, top_k=0.3) == out.swapaxes(1, 2)).all()
    backwards = [np.ascontiguousarray(x[..., ::-1])[..., ::-1] for x in plain]
    assert (tilewright.sparse_attention(*backwards, top_k=0.3) == out.swapaxes(1, 2)).all()


def test_causal():
    q, k, v = (noise(seed, 1, 2, 300, 64) for seed in (1, 2, 3))
    out, mask = tilewright.sparse_attention(q, k, v, top_k=0.4, top_p=None, is_causal=True, return_mask=True)
    keep = expand(mask.to_dense(), (128, 64), (300, 300)) & np.tri(300, dtype=bool)
    assert distance(out, attend(q, k, v, keep)[0]) < 1e-3
    assert not mask.to_dense()[..., 0, 2:].any(), "blocks above the diagonal are never looked at"
    assert (tilewright.attention(q, k, v, mask) == out).all(), "the mask knows that it is causal"


def test_a_mask_of_ones_own_and_rows_with_nothing():
    q, k, v = (noise(seed, 1, 2, 300, 64) for seed in (1, 2, 3))
    map = np.zeros((1, 1, 3, 5), dtype=bool)
    map[..., 0, [1, 4]] = True
    map[..., 2, 0] = True
    out, lse = tilewright.attention(q, k, v, map, return_lse=True)
    expected, expected_lse = attend(q, k, v, expand(map, (128, 64), (300, 300)))
    assert distance(out, expected) < 1e-3
    assert (out[:, :, 128:256] == 0).all() and (lse[:, :, 128:256] == -np.inf).all()
    assert np.abs(lse[:, :, :128] - expected_lse[:, :, :128]).max() < 1e-3
    mask = tilewright.BlockMask.from_dense(map, seq_lengths=(300, 300))
    assert (tilewright.sparse_attention(q, k, v, mask=mask) == out).all()
    assert mask.kept_blocks() == 3 and mask.sparsity() == 1 - 3 / 15
    assert (mask.to_dense() == map).all()
    assert mask.q_num_blocks.tolist() == [[[1, 1, 0, 0, 1]]]


def test_no_keys_and_no_queries():
    q, none = noise(1, 1, 2, 5, 64), noise(1, 1, 2, 0, 64)
    out, lse = tilewright.sparse_attention(q, none, none, return_lse=True)
    assert (out == 0).all() and (lse == -np.inf).all()
    assert tilewright.sparse_attention(none, q, q).shape == (1, 2, 0, 64)


def test_importing_looks_for_no_torch():
    code = "import sys, tilewright; assert 'torch' not in sys.modules; tilewright.sparse_attention"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_the_module_says_so():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import tilewright\n"
        "try: tilewright.SparseAttention\n"
        "except tilewright.Error as error: assert 'pip install torch' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


GOOD = (1, 2, 300, 64)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (dict(q=noise(1, *GOOD, dtype=np.float32)), TypeError, "float16 or bfloat16: cast"),
        (dict(q=noise(1, *GOOD, dtype=np.float64)), TypeError, "float16 or bfloat16: cast"),
        (dict(k=noise(1, *GOOD, dtype=np.float32)), TypeError, "k has dtype float32"),
        (dict(q=noise(1, 2, 300, 64)), ValueError, "q has 3 dimensions"),
        (dict(k=noise(1, 2, 2, 300, 64)), ValueError, "batch is (1, 2) in q and k"),
        (dict(v=noise(1, 1, 2, 299, 64)), ValueError, "seq_kv is (300, 299) in k and v"),
        (dict(k=noise(1, 1, 2, 300, 72)), ValueError, "d is (64, 72) in q and k"),
        (dict(q=noise(1, 1, 4, 300, 64)), ValueError, "pass enable_gqa=True"),
        (dict(q=noise(1, 1, 3, 300, 64), enable_gqa=True), ValueError, "3 heads and k has 2"),
        (dict(q=[1, 2]), TypeError, "q is of type list"),
        (dict(k="k"), TypeError, "k is of type str"),
        (dict(top_k=0.0), ValueError, "top-k is 0, needed a share in (0, 1]"),
        (dict(top_p=1.5), ValueError, "top-p is 1.5"),
        (dict(top_k=float("nan")), ValueError, "top-k is NaN"),
        (dict(scale=float("inf")), ValueError, "the scale is inf"),
        (dict(block_size=(100, 64)), ValueError, "needed one of (128, 64)"),
        (dict(layout="SBHD"), ValueError, "layout is 'SBHD'"),
        (dict(mask=np.ones((1, 1, 3, 4), dtype=bool)), ValueError, "the block map has shape (1, 1, 3, 4)"),
        (dict(mask=np.ones((1, 3, 3, 5), dtype=bool)), ValueError, "the mask has heads 3, the tensors have 2"),
        (dict(mask=np.ones((1, 1, 3, 5))), TypeError, "the mask is of dtype float64"),
        (dict(mask=7), TypeError, "the mask is a int"),
        (dict(score_mod=lambda *a: 0), TypeError, "wrap it with `tilewright.score_mod(…)`"),
        (dict(mask_mod=lambda *a: 0), TypeError, "wrap it with `tilewright.mask_mod(…)`"),
        (dict(mask_mod=lambda *a: 0, is_causal=True), ValueError, "both given"),
    ],
)
def test_bad_input(change, kind, words):
    call = dict(q=noise(1, *GOOD), k=noise(2, *GOOD), v=noise(3, *GOOD), **{})
    call.update(change)
    with pytest.raises(kind) as caught:
        tilewright.sparse_attention(call.pop("q"), call.pop("k"), call.pop("v"), **call)
    assert words in str(caught.value)


@pytest.mark.parametrize("dim", [4, 100, 264])
def test_head_dimensions_no_kernel_takes(dim):
    x = noise(1, 1, 1, 10, dim)
    with pytest.raises(ValueError, match=f"head dimension {dim}, needed a multiple of 8"):
        tilewright.sparse_attention(x, x, x)


def test_lists_that_name_no_block():
    x = noise(1, 1, 1, 128, 64)
    for indices, words in [([[[[2, 0]]]], "names block 2"), ([[[[1, 1]]]], "listed twice")]:
        mask = tilewright.BlockMask(
            np.array([[[2]]], dtype=np.int32), np.array(indices, dtype=np.int32), seq_lengths=(128, 128)
        )
        with pytest.raises(ValueError, match=words):
            tilewright.attention(x, x, x, mask)
