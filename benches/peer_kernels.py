"""The kernels that `peers.py` times, and what they are called with."""

import functools
import importlib
import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# name: heads, tokens, head dimension
WORKLOADS = {"480p": (12, 32_760, 128), "720p": (10, 75_600, 128), "cogvideox": (30, 17_776, 64)}
FORWARD, BACKWARD, MASK, CALL = "forward", "backward", "mask", "a user's call"
CUDNN = "cuDNN dense"
# What may stand for the blocks left out.
TAILS = {"block": "block", "row 128": ("row", 128)}


class Missing(Exception):
    """A peer that cannot take part, and why."""


@dataclass
class Work:
    """Tensors of one workload, `[1, heads, tokens, d]`."""

    name: str
    heads: int
    seq: int
    d: int
    q: torch.Tensor = None
    k: torch.Tensor = None
    v: torch.Tensor = None

    def __post_init__(self):
        generator = torch.Generator("cuda").manual_seed(1)
        self.q, self.k, self.v = (
            torch.randn(1, self.heads, self.seq, self.d, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(3)
        )

    def flops(self, kept, what):
        return 4 * self.heads * self.seq * self.seq * self.d * kept * (2.5 if what == BACKWARD else 1)


def random_map(work, kept, uneven, block):
    """A bool map of blocks, `[1, heads, q_blocks, kv_blocks]`: each row keeps its number at random places."""
    rows, columns = -(-work.seq // block[0]), -(-work.seq // block[1])
    generator = torch.Generator("cuda").manual_seed(2)
    counts = torch.full((1, work.heads, rows, 1), max(1, round(kept * columns)), device="cuda")
    if uneven:
        few = kept * columns / 1.9  # 0.9 · few + 0.1 · 10 · few = 1.9 · few is the mean
        many = torch.rand(counts.shape, device="cuda", generator=generator) < 0.1
        counts = torch.where(many, min(columns, round(10 * few)), max(1, round(few)))
    scores = torch.rand(1, work.heads, rows, columns, device="cuda", generator=generator)
    return scores.argsort(dim=-1).argsort(dim=-1) < counts


def lists(map):
    """Counts and ascending indices of a map, as FlexAttention has them."""
    counts = map.sum(-1, dtype=torch.int32)
    indices = map.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts, indices.contiguous()


class Peer:
    """A kernel to time. `blocks` is the sparse block it takes; None for a dense one."""

    name: str
    blocks = None

    def calls(self, work, map, kept):
        """(what, call) pairs for a map of blocks, of which a share of `kept` is true; None for a dense peer. In the place of a call there may be
        several by tail, None for that without one."""
        raise NotImplementedError

    def output(self, result):
        """The output `[1, heads, tokens, d]` of a forward call."""
        return result


class Sdpa(Peer):
    def __init__(self, name, backend, backward):
        self.name, self.backend, self.backward = name, backend, backward

    def calls(self, work, map, kept):
        from torch.nn.attention import sdpa_kernel

        def forward(q, k, v):
            with sdpa_kernel(self.backend):
                return F.scaled_dot_product_attention(q, k, v)

        yield FORWARD, lambda: forward(work.q, work.k, work.v)
        if self.backward:
            leaves = [tensor.detach().requires_grad_() for tensor in (work.q, work.k, work.v)]
            out, d_out = forward(*leaves), torch.randn_like(work.q)
            yield BACKWARD, lambda: torch.autograd.grad(out, leaves, d_out, retain_graph=True)


class Flex(Peer):
    def __init__(self, blocks=(128, 64)):
        self.name = f"FlexAttention {blocks[0]}×{blocks[1]}"
        self.blocks = blocks
        # Shapes stay the same over the kept shares of a workload: one compile each.
        self.compiled = None

    def calls(self, work, map, kept):
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        if self.compiled is None:
            self.compiled = torch.compile(flex_attention, dynamic=False)
        counts, indices = lists(map)
        options = {"BLOCK_SIZE": self.blocks, "seq_lengths": (work.seq, work.seq)}
        if "compute_q_blocks" in inspect.signature(BlockMask.from_kv_blocks).parameters:
            options["compute_q_blocks"] = False  # for a backward alone
        # Whole blocks, without a mask function to evaluate in them.
        mask = BlockMask.from_kv_blocks(torch.zeros_like(counts), torch.zeros_like(indices), counts, indices, **options)
        kernel = {"BLOCK_M": 128, "BLOCK_N": self.blocks[1]}
        yield FORWARD, lambda: self.compiled(work.q, work.k, work.v, block_mask=mask, kernel_options=kernel)


class FlashAttention4(Peer):
    """`flash_attn.cute`; tensors are `[batch, tokens, heads, d]` there."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.name = "FlashAttention 4 dense" if blocks is None else f"FlashAttention 4 {blocks[0]}×{blocks[1]}"
        self.interface = imported("flash_attn.cute.interface")

    def calls(self, work, map, kept):
        q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (work.q, work.k, work.v))
        if self.blocks is None:
            yield FORWARD, lambda: self.interface.flash_attn_func(q, k, v)
            return
        function = self.interface._flash_attn_fwd
        names = inspect.signature(function).parameters
        options = {"tile_mn": self.blocks} if "tile_mn" in names else dict(zip(("m_block_size", "n_block_size"), self.blocks))
        counts, indices = lists(map)
        tensors = imported("flash_attn.cute.block_sparsity").BlockSparseTensorsTorch(
            mask_block_cnt=torch.zeros_like(counts), mask_block_idx=torch.zeros_like(indices), full_block_cnt=counts, full_block_idx=indices
        )
        yield FORWARD, lambda: function(q, k, v, block_sparse_tensors=tensors, **options)

    def output(self, result):
        return (result[0] if isinstance(result, tuple) else result).transpose(1, 2)


class Sparge(Peer):
    """SpargeAttn: INT8 QK, FP8 PV, quantised in the call; its Hopper kernel takes blocks of 64×128."""

    name = "SpargeAttn (INT8, FP8)"

    def __init__(self):
        self.function = imported("spas_sage_attn.core").block_sparse_sage2_attn_cuda
        self.blocks = (64, 128) if torch.cuda.get_device_capability() == (9, 0) else (128, 64)

    def calls(self, work, map, kept):
        yield FORWARD, lambda: self.function(work.q, work.k, work.v, mask_id=map, tensor_layout="HND")


class Tilewright(Peer):
    def __init__(self, blocks=(128, 64)):
        self.name = f"Tilewright {blocks[0]}×{blocks[1]}"
        self.blocks = blocks
        self.package = imported("tilewright")

    def calls(self, work, map, kept):
        mask = self.package.BlockMask(*lists(map), BLOCK_SIZE=self.blocks, seq_lengths=(work.seq, work.seq)).with_unlisted_dropped()
        # Where all is kept there is nothing to stand for.
        tails = {None: None} if kept == 1 else {None: None, **TAILS}
        q, k, v = work.q, work.k, work.v
        rule = {"top_k": kept, "top_p": None, "block_size": self.blocks}
        yield FORWARD, lambda: self.package.attention(q, k, v, mask)
        yield MASK, lambda: self.package.block_mask(q, k, **rule)
        yield CALL, {name: functools.partial(self.package.sparse_attention, q, k, v, **rule, tail=tail) for name, tail in tails.items()}
        leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        try:
            outs = {name: self.package.attention(*leaves, mask, tail=tail) for name, tail in tails.items()}
        except self.package.Error as error:
            raise Missing(f"{BACKWARD}: {error}") from error
        d_out = torch.randn_like(q)
        yield BACKWARD, {name: functools.partial(torch.autograd.grad, out, leaves, d_out, retain_graph=True) for name, out in outs.items()}


def imported(module):
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package of other versions fails in many ways
        raise Missing(f"cannot import {module}: {first_line(error)}") from error


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def peers():
    """(key, how to make it), in the order they run: what matters most first, the slow to compile last."""
    from torch.nn.attention import SDPBackend

    return [
        ("cudnn", lambda: Sdpa(CUDNN, SDPBackend.CUDNN_ATTENTION, True)),
        ("fa2", lambda: Sdpa("FlashAttention 2 dense", SDPBackend.FLASH_ATTENTION, False)),
        ("tilewright", Tilewright),
        ("tilewright128", lambda: Tilewright((128, 128))),
        ("fa4", lambda: FlashAttention4(None)),
        ("fa4sparse64", lambda: FlashAttention4((128, 64))),
        ("fa4sparse", lambda: FlashAttention4((128, 128))),
        ("sparge", Sparge),
        ("flex", Flex),
    ]
