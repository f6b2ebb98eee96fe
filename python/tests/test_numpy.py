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


@pytest.mark.parametrize(("top_k", "top_p"), [(0.3, None), (None, 0.5)])
@pytest.mark.parametrize("tail", [None, "block", "row"])
def test_blocks_scored_by_keys(tail, top_k, top_p):
    q, k, v = noise(1, 2, 4, 257, 72), noise(2, 2, 2, 430, 72), noise(3, 2, 2, 430, 72)
    options = {"top_k": top_k, "top_p": top_p, "block_size": (64, 64), "enable_gqa": True}
    mask = tilewright.block_mask(q, k, **options, scores="keys")
    assert (mask.to_dense() == select(q, k, (64, 64), top_k, top_p, keys=4)).all()
    assert (mask.to_dense() != tilewright.block_mask(q, k, **options).to_dense()).any()
    expected, expected_lse = tilewright.attention(q, k, v, mask, enable_gqa=True, tail=tail, return_lse=True)
    for scores in ("keys",) if tail is None else ("keys", None):
        out, lse = tilewright.sparse_attention(q, k, v, **options, tail=tail, scores=scores, return_lse=True)
        assert (out == expected).all() and (lse == expected_lse).all()


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


# ---- numbers and arrays of numpy -------------------------------------------------------------------------------------

INTEGERS = [np.int64, np.int32, np.uint8, np.uint64, np.intp]


@pytest.mark.parametrize("integer", INTEGERS)
def test_integers_of_numpy_are_sizes(integer):
    q, k, v = (noise(seed, 1, 2, 200, 64) for seed in (1, 2, 3))
    blocks = (integer(64), integer(64))
    out, mask = tilewright.sparse_attention(q, k, v, top_k=0.5, block_size=blocks, return_mask=True)
    expected, plain = tilewright.sparse_attention(q, k, v, top_k=0.5, block_size=(64, 64), return_mask=True)
    assert (out == expected).all() and repr(mask) == repr(plain)
    assert (tilewright.sparse_attention(q, k, v, top_k=0.5, block_size=np.array([64, 64])) == expected).all()
    seqs = (integer(200), integer(200))
    for again in (
        tilewright.BlockMask.from_dense(mask.to_dense(), seq_lengths=seqs, BLOCK_SIZE=blocks),
        tilewright.BlockMask(mask.kv_num_blocks, mask.kv_indices, seq_lengths=seqs, BLOCK_SIZE=integer(64)),
    ):
        assert repr(again) == repr(plain) and again.sparsity() == plain.sparsity()
        assert all(type(number) is int for number in (*again.seq_lengths, *again.BLOCK_SIZE))
        assert (tilewright.attention(q, k, v, again) == expected).all()
    sizes = [integer(4), integer(5), integer(8)]
    grid = tilewright.TokenGrid(sizes, (integer(4), integer(4), integer(4)), before=integer(3), after=integer(2))
    assert grid == tilewright.TokenGrid((4, 5, 8), before=3, after=2) and type(grid.before) is int
    assert (grid.regroup(np.arange(165), integer(0)) == grid.order()).all()


@pytest.mark.parametrize("real", [np.float64, np.float32, np.float16])
def test_reals_of_numpy_are_options(real):
    q, k, v = (noise(seed, 1, 2, 300, 64) for seed in (1, 2, 3))
    options = dict(top_k=0.5, top_p=0.25, scale=0.125)
    expected = tilewright.sparse_attention(q, k, v, **options)
    of_numpy = {name: real(value) for name, value in options.items()}
    assert (tilewright.sparse_attention(q, k, v, **of_numpy) == expected).all()
    mask = tilewright.block_mask(q, k, **of_numpy)
    assert (tilewright.attention(q, k, v, mask, scale=real(0.125)) == expected).all()
    assert (tilewright.sparse_attention(q, k, v, is_causal=np.True_, **of_numpy) == tilewright.sparse_attention(q, k, v, is_causal=True, **options)).all()
    assert (tilewright.sparse_attention(q, k, v, top_k=np.int64(1)) == tilewright.sparse_attention(q, k, v, top_k=1.0)).all()


@pytest.mark.parametrize("option", ["top_k", "top_p", "scale"])
@pytest.mark.parametrize("value", ["0.5", b"1", [0.5], (1,), {}, 1j])
def test_options_that_are_no_numbers(option, value):
    q = noise(1, 1, 2, 300, 64)
    for call in (lambda **options: tilewright.sparse_attention(q, q, q, **options), lambda **options: tilewright.block_mask(q, q, **options)):
        with pytest.raises(TypeError, match=f"{option} is .*, of type {type(value).__name__}, needed a number or None"):
            call(**{option: value})


def test_masked_arrays():
    q, k, v = (noise(seed, 1, 2, 300, 64) for seed in (1, 2, 3))
    masked = [np.ma.masked_array(x, mask=x > 1) for x in (q, k, v)]
    for i, name in enumerate("qkv"):
        operands = [m if i == j else x for j, (m, x) in enumerate(zip(masked, (q, k, v)))]
        with pytest.raises(TypeError, match=rf"{name} is a numpy.ma.MaskedArray, whose mask would be ignored: pass `array.filled\(0\)`"):
            tilewright.sparse_attention(*operands)
    map = np.ma.masked_array(np.ones((1, 1, 3, 5), dtype=bool), mask=False)
    with pytest.raises(TypeError, match="the block map is a numpy.ma.MaskedArray"):
        tilewright.attention(q, k, v, map)
    mask = tilewright.block_mask(q, k)
    lists = tilewright.BlockMask(mask.kv_num_blocks, np.ma.masked_array(mask.kv_indices), seq_lengths=(300, 300))
    with pytest.raises(TypeError, match="kv_indices is a numpy.ma.MaskedArray"):
        tilewright.attention(q, k, v, lists)
    grid = tilewright.TokenGrid((3, 10, 10))
    moved = grid.regroup(masked[0], 2)
    assert (moved.mask == grid.regroup(masked[0].mask, 2)).all() and (moved.data == grid.regroup(q, 2)).all()


def test_arrays_in_a_file_and_arrays_that_are_read_only(tmp_path):
    q = noise(1, 1, 2, 300, 64)
    expected = tilewright.sparse_attention(q, q, q)
    np.save(tmp_path / "q.npy", q)
    mapped = np.load(tmp_path / "q.npy", mmap_mode="r")
    assert (tilewright.sparse_attention(mapped, mapped, mapped) == expected).all()
    q.flags.writeable = False
    assert (tilewright.sparse_attention(q, q, q) == expected).all()


def test_the_text_of_a_mask():
    q = noise(1, 1, 2, 300, 64)
    mask = tilewright.block_mask(q, q, top_k=0.5, top_p=None)
    assert repr(mask) == "BlockMask(shape=(1, 2, 300, 300), BLOCK_SIZE=(128, 64), sparsity=0.4, mask_mod=None)"
    none = tilewright.BlockMask.from_dense(np.zeros((1, 1, 3, 5), dtype=bool), seq_lengths=(300, 300))
    assert "sparsity=1," in repr(none)
    empty = tilewright.block_mask(q[:, :, :0], q)
    assert "shape=(1, 2, 0, 300)" in repr(empty) and "sparsity=0," in repr(empty)
