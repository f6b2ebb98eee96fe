"""`BlockMask`: which blocks of keys each block of queries attends to."""

from __future__ import annotations

import operator
from numbers import Integral
from typing import Any, Generic, Optional, Union

from . import _native
from ._torch import torch_of
from ._typing import Array, FlexBlockMask
from .flex import causal, python_function
from .functions import TranslationError, mask_mod_of

#: The sparse blocks there are, (queries, keys); the default first.
BLOCK_SIZES = tuple(_native.block_sizes())

#: Keys that a mean of the tail "row" is of, or the next multiple of those of a block.
_ROW_KEYS = _native.ROW_KEYS

#: What PyTorch and numpy call it.
_BOOLS = ("torch.bool", "bool")

#: A mask function that decides within partial blocks: an object of `tilewright.mask_mod`, "causal" for the one that is built in,
#: or None.
MaskFunction = Any


class BlockMask(Generic[Array]):
    """For every block of queries, the list of key blocks it attends to, under FlexAttention's names.

    Attributes:
        kv_num_blocks: int32 `[batch or 1, heads or 1, q_blocks]`: how many blocks each row lists.
        kv_indices: int32 `[batch or 1, heads or 1, q_blocks, width]`: the blocks, each row's first `kv_num_blocks` entries.
            The mask function, where there is one, decides element by element within them.
        full_kv_num_blocks, full_kv_indices: the same for blocks that the mask function keeps as a whole, or None. Their batch and heads
            are those of kv_num_blocks; given as 1, they are spread.
        BLOCK_SIZE: (queries, keys) of a block.
        seq_lengths: (seq_q, seq_kv).
        mask_mod: the mask function, "causal" for the built-in one, or None.

    The lists are PyTorch tensors or numpy arrays, as the q that the mask was made of. `block_mask` makes masks; `from_dense`,
    `from_flex` and this constructor take those of others. Lists are read on the device and need not ascend. Their contents are not
    looked at there, for that would wait: on a GPU a number that is no block is skipped and a count past its list is cut to it; on the
    CPU both are errors. Listing a block twice in a row, or as a partial and a full block at once, is an error that the GPU does not
    see: its keys would count twice.
    """

    kv_num_blocks: Array
    kv_indices: Array
    full_kv_num_blocks: Optional[Array]
    full_kv_indices: Optional[Array]

    def __init__(
        self,
        kv_num_blocks: Array,
        kv_indices: Array,
        full_kv_num_blocks: Optional[Array] = None,
        full_kv_indices: Optional[Array] = None,
        *,
        BLOCK_SIZE: Union[int, tuple[int, int]] = (128, 64),
        seq_lengths: tuple[int, int],
        mask_mod: MaskFunction = None,
        dropped: Optional[Array] = None,
    ) -> None:
        self.BLOCK_SIZE = checked_block_size(BLOCK_SIZE)
        self.seq_lengths = _checked_lengths(seq_lengths)
        self.kv_num_blocks, self.kv_indices = kv_num_blocks, kv_indices
        self.full_kv_num_blocks, self.full_kv_indices = full_kv_num_blocks, full_kv_indices
        self.mask_mod = mask_mod
        self._transposed: Optional[tuple[Any, ...]] = None
        if (full_kv_num_blocks is None) != (full_kv_indices is None):
            raise ValueError("full_kv_num_blocks and full_kv_indices come together: pass both, or neither")
        rows = self._grid()[0]
        for name, value in {**self.lists(), "dropped": dropped}.items():
            if value is not None:
                _check_is_array(name, value)
        if full_kv_num_blocks is not None:
            kv, full = tuple(kv_num_blocks.shape), tuple(full_kv_num_blocks.shape)
            if len(kv) == len(full) and any(full[i] not in (kv[i], 1) for i in range(min(2, len(kv)))):
                raise ValueError(
                    f"full_kv_num_blocks has shape {full} and kv_num_blocks {kv}, needed the same batch and heads in both, or 1 in "
                    "full_kv_num_blocks: expand the smaller of them"
                )
        for name in ("kv", "full_kv"):
            counts, indices = getattr(self, f"{name}_num_blocks"), getattr(self, f"{name}_indices")
            if counts is None:
                continue
            if len(counts.shape) != 3 or counts.shape[2] != rows:
                raise ValueError(
                    f"{name}_num_blocks has shape {tuple(counts.shape)}, needed [batch, heads, {rows}]: {rows} blocks of "
                    f"{self.BLOCK_SIZE[0]} cover the {self.seq_lengths[0]} queries of seq_lengths. Of a part of the query blocks, give the "
                    "seq_lengths of that part"
                )
            if len(indices.shape) != 4 or tuple(indices.shape[:3]) != tuple(counts.shape):
                raise ValueError(
                    f"{name}_indices has shape {tuple(indices.shape)}, needed {[*counts.shape, 'width']}: a list for every count"
                )
        if dropped is not None:
            needed = (*kv_num_blocks.shape[:2], rows, -(-self._grid()[1] // 32))
            if tuple(dropped.shape) != needed:
                raise ValueError(
                    f"dropped has shape {tuple(dropped.shape)}, needed {needed}: the batch and heads of the lists, the query blocks, and a "
                    "bit for every key block, 32 in a word"
                )
            dropped = dropped.reshape(*needed[:2], needed[2] * needed[3])
        self._bits = dropped
        if full_kv_num_blocks is not None:
            # Kernels read both kinds of lists at one place.
            self.full_kv_num_blocks, self.full_kv_indices = (
                _spread(lists, tuple(kv_num_blocks.shape[:2])) for lists in (full_kv_num_blocks, full_kv_indices)
            )

    # ---- made of ---------------------------------------------------------------------------------------------------

    @classmethod
    def of_lists(
        cls, lists: Any, block_size: tuple[int, int], seqs: tuple[int, int], mask_mod: MaskFunction, says_dropped: bool
    ) -> "BlockMask":
        """The mask of what the operator `tilewright::block_mask` returns, with `dropped` or without."""
        lists = list(lists)
        dropped = lists.pop() if says_dropped else None
        kv, by_kv = lists[0:2], lists[2:4]
        full, full_by_kv = (lists[4:6], lists[6:8]) if len(lists) > 4 else ([None, None], [None, None])
        mask = cls(*kv, *full, BLOCK_SIZE=block_size, seq_lengths=seqs, mask_mod=mask_mod)
        mask._bits = dropped
        mask._transposed = (*by_kv, *full_by_kv)
        return mask

    @classmethod
    def from_dense(
        cls,
        map: Array,
        *,
        seq_lengths: tuple[int, int],
        BLOCK_SIZE: Union[int, tuple[int, int]] = (128, 64),
        mask_mod: MaskFunction = None,
    ) -> "BlockMask[Array]":
        """The mask of a map of the blocks to keep, bool `[batch or 1, heads or 1, q_blocks, kv_blocks]`."""
        blocks, seq_lengths = checked_block_size(BLOCK_SIZE), _checked_lengths(seq_lengths)
        _check_is_array("the block map", map)
        if str(map.dtype) not in _BOOLS:
            raise TypeError(f"the block map has dtype {map.dtype}, needed bool: compare it, as in `map > 0`")
        needed = tuple(-(-seq // block) for seq, block in zip(seq_lengths, blocks))
        if len(map.shape) != 4 or tuple(map.shape[2:]) != needed:
            raise ValueError(
                f"the block map has shape {tuple(map.shape)}, needed [batch or 1, heads or 1, {needed[0]}, {needed[1]}]: blocks of "
                f"{blocks[0]} queries and {blocks[1]} keys over {seq_lengths}. A map of single elements is no block map: give "
                "it as a mask_mod"
            )
        if torch_of(map) is None:
            _refuse_masked_array(map)
        counts, indices = _lists_of(map)
        return cls(counts, indices, BLOCK_SIZE=blocks, seq_lengths=seq_lengths, mask_mod=mask_mod)

    @classmethod
    def from_flex(cls, mask: FlexBlockMask) -> "BlockMask[Any]":
        """FlexAttention's `BlockMask`, its lists as they are.

        Raises:
            ValueError: its BLOCK_SIZE is none of `BLOCK_SIZES`; it is a slice of another mask, which lost its mask_mod and has partial
                blocks, or has other query blocks than its seq_lengths say.
            tilewright.Error: its mask_mod is no device function, and there are partial blocks for it to decide. Finding out about the
                blocks waits for the GPU.
        """
        return cls(
            mask.kv_num_blocks,
            mask.kv_indices,
            mask.full_kv_num_blocks,
            mask.full_kv_indices,
            BLOCK_SIZE=mask.BLOCK_SIZE,
            seq_lengths=mask.seq_lengths,
            mask_mod=_flex_function(mask),
        )

    def to_flex(self) -> Any:
        """FlexAttention's `BlockMask` of the same lists, for PyTorch's own kernels. Its mask_mod is the Python function of this mask's
        mask_mod, with the values that were bound; `q >= kv` for "causal".

        Raises:
            TypeError: the lists are numpy arrays, or mask_mod is none that has a Python function.
            ValueError: mask_mod was bound to values that its Python function cannot be given.
        """
        _check_is_torch(self.kv_num_blocks, "for FlexAttention")
        from torch.nn.attention.flex_attention import BlockMask as Flex

        return Flex.from_kv_blocks(
            self.kv_num_blocks,
            self.kv_indices,
            self.full_kv_num_blocks,
            self.full_kv_indices,
            BLOCK_SIZE=self.BLOCK_SIZE,
            mask_mod=python_function(self.mask_mod),
            seq_lengths=self.seq_lengths,
        )

    # ---- what it drops ---------------------------------------------------------------------------------------------

    @property
    def dropped(self) -> Optional[Array]:
        """The dropped blocks, for which a `tail` stands: those that are left out although a query may attend to all of their keys. The others that
        are left out are forbidden. None where the mask does not say: one that was selected does, one of others does after `with_admissible` or
        `with_unlisted_dropped`. int32 `[batch or 1, heads or 1, q_blocks, ceil(kv_blocks / 32)]`, bit b of word w for key block 32 · w + b."""
        if self._bits is None:
            return None
        rows, columns = self._grid()
        return self._bits.reshape(*self._bits.shape[:2], rows, -(-columns // 32))

    @property
    def dropped_bits(self) -> Optional[Array]:
        """`dropped` as the operators take it, with the words of all rows of a head in one dimension."""
        return self._bits

    def with_admissible(self, admissible: Any) -> "BlockMask[Array]":
        """The same lists with `dropped`: what they leave out of `admissible` is dropped, and all else is forbidden.

        Args:
            admissible: the blocks whose keys may be attended to, as a mask that `attention` takes. Of one with a mask function its full blocks
                alone can be dropped, for in the others the function forbids some of the keys; of one without, all that it lists. For a mask
                function `f` that is `block_mask(q, k, top_k=None, top_p=None, mask_mod=f)`.

        Raises:
            ValueError: other lengths, blocks, batch or heads than this mask's (1 is shared) or another device, or a mask function without
                full blocks, of which nothing is known.
            TypeError: no mask, or lists of another framework.
        """
        admissible = as_block_mask(admissible, self.BLOCK_SIZE, self.seq_lengths)
        self._check_admissible(admissible)
        is_split = admissible.full_kv_num_blocks is not None
        counts = admissible.full_kv_num_blocks if is_split else admissible.kv_num_blocks
        indices = admissible.full_kv_indices if is_split else admissible.kv_indices
        return self._dropping(_map_of(counts, indices, self._grid()[1]) & ~self.to_dense())

    def with_unlisted_dropped(self) -> "BlockMask[Array]":
        """The same lists with `dropped`: all that they leave out is dropped, and no key is forbidden. In FlexAttention's masks an unlisted block is
        a forbidden one: they want `with_admissible`."""
        return self._dropping(~self.to_dense())

    def dropped_map(self) -> Optional[Array]:
        """The map of dropped blocks, bool `[batch or 1, heads or 1, q_blocks, kv_blocks]`; None where the mask does not say."""
        dropped = self.dropped
        return None if dropped is None else _map_of_bits(dropped, self._grid()[1])

    def _dropping(self, map: Any) -> "BlockMask[Array]":
        return self._made_of(lambda list: list, _bits_of(map))

    def _check_admissible(self, admissible: "BlockMask") -> None:
        ours, theirs = self.kv_num_blocks, admissible.kv_num_blocks
        if (torch_of(ours) is None) != (torch_of(theirs) is None):
            raise TypeError(
                f"the mask's lists are of type {type(ours).__name__}, the admissible mask's of {type(theirs).__name__}: make both of one "
                "framework"
            )
        if torch_of(ours) is not None and ours.device != theirs.device:
            raise ValueError(
                f"the mask is on {ours.device}, the admissible mask on {theirs.device}: move it with `admissible.to(device)`"
            )
        if admissible.BLOCK_SIZE != self.BLOCK_SIZE:
            raise ValueError(
                f"the admissible mask has blocks of {admissible.BLOCK_SIZE}, the mask of {self.BLOCK_SIZE}: make both of the same blocks"
            )
        for name, found, needed in zip(("batch", "heads", "seq_q", "seq_kv"), admissible.shape, self.shape):
            if found != needed and not (found == 1 and name in ("batch", "heads")):
                if needed == 1 and name in ("batch", "heads"):
                    batch, heads = map(max, self.shape[:2], admissible.shape[:2])
                    raise ValueError(
                        f"the admissible mask has {name} {found}, the mask has 1, for all of them: make it for {found} too, of a map that is "
                        f"expanded by `map.expand({batch}, {heads}, -1, -1)`"
                    )
                raise ValueError(
                    f"the admissible mask has {name} {found}, the mask has {needed}: make it for the same tensors"
                )
        if admissible.mask_mod is not None and admissible.full_kv_num_blocks is None:
            raise ValueError(
                f"the admissible mask has the function {admissible.mask_mod!r} and no full blocks, so that nothing says which of its blocks the "
                "function keeps whole: make it with `block_mask(q, k, top_k=None, top_p=None, mask_mod=…)`"
            )

    # ---- handed on -------------------------------------------------------------------------------------------------

    def lists(self) -> dict[str, Any]:
        """The lists that kernels read, by name."""
        return {
            "kv_num_blocks": self.kv_num_blocks,
            "kv_indices": self.kv_indices,
            "full_kv_num_blocks": self.full_kv_num_blocks,
            "full_kv_indices": self.full_kv_indices,
        }

    def function_number(self) -> int:
        """The number by which kernels know the mask function; 0 for none."""
        causal = isinstance(self.mask_mod, str) and self.mask_mod == "causal"
        return function_numbers(None, None if causal else self.mask_mod, causal)[1]

    # ---- looked at -------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch or 1, heads or 1, seq_q, seq_kv)."""
        return (*self.kv_num_blocks.shape[:2], *self.seq_lengths)

    @property
    def q_num_blocks(self) -> Array:
        """How many query blocks attend to each key block: int32 `[batch or 1, heads or 1, kv_blocks]`."""
        return self._transpose()[0]

    @property
    def q_indices(self) -> Array:
        """The query blocks of each key block: int32 `[batch or 1, heads or 1, kv_blocks, q_blocks]`."""
        return self._transpose()[1]

    @property
    def full_q_num_blocks(self) -> Optional[Array]:
        """As `q_num_blocks`, of full blocks; or None."""
        return self._transpose()[2]

    @property
    def full_q_indices(self) -> Optional[Array]:
        """As `q_indices`, of full blocks; or None."""
        return self._transpose()[3]

    def row_counts(self) -> Array:
        """How many blocks each query block keeps: int32 `[batch or 1, heads or 1, q_blocks]`, on the mask's device."""
        if self.full_kv_num_blocks is None:
            return self.kv_num_blocks
        return self.kv_num_blocks + self.full_kv_num_blocks

    def kept_blocks(self) -> int:
        """How many blocks are kept. Reading it waits for the GPU."""
        return int(self.row_counts().sum())

    def sparsity(self) -> float:
        """The share of blocks dropped: 0.95 means that one block in twenty is computed. Reading it waits for the GPU."""
        batch, heads = self.kv_num_blocks.shape[:2]
        rows, columns = self._grid()
        total = batch * heads * rows * columns
        return 1.0 - self.kept_blocks() / total if total else 0.0

    def to_dense(self) -> Array:
        """The map of kept blocks, bool `[batch or 1, heads or 1, q_blocks, kv_blocks]`."""
        map = _map_of(self.kv_num_blocks, self.kv_indices, self._grid()[1])
        if self.full_kv_num_blocks is not None:
            map = map | _map_of(self.full_kv_num_blocks, self.full_kv_indices, self._grid()[1])
        return map

    def to(self, device: Any) -> "BlockMask[Array]":
        """The same mask with its lists on another device.

        Raises TypeError for a mask of numpy arrays, which are on no device but the CPU.
        """
        _check_is_torch(self.kv_num_blocks, "to move them")
        move = lambda tensor: None if tensor is None else tensor.to(device)  # noqa: E731
        return self._made_of(move, move(self._bits))

    def check_fits(self, q: Any, k: Any, layout: str = "BHSD") -> None:
        """Raises ValueError unless the mask is one for these tensors; its batch and heads may be 1."""
        seq, head = (1, 2) if layout == "BSHD" else (2, 1)
        found = self.shape
        needed = (q.shape[0], q.shape[head], q.shape[seq], k.shape[seq])
        names = ("batch", "heads", "seq_q", "seq_kv")
        for i, name in enumerate(names):
            if found[i] == needed[i] or (i < 2 and found[i] == 1):
                continue
            hint = ", or give it 1 there to share it" if i < 2 else ""
            raise ValueError(
                f"the mask has {name} {found[i]}, the tensors have {needed[i]}: make the mask for these tensors{hint}"
            )

    def __repr__(self) -> str:
        """What the mask is, and its sparsity, for which it waits for the GPU; not where that cannot be read."""
        sparsity = f", sparsity={self.sparsity():.4g}" if _is_readable(self.kv_num_blocks) else ""
        return f"BlockMask(shape={self.shape}, BLOCK_SIZE={self.BLOCK_SIZE}{sparsity}, mask_mod={self.mask_mod!r})"

    def _made_of(self, make: Any, bits: Any) -> "BlockMask[Array]":
        """The mask of what `make` makes of each of its lists, which may be None, and of these bits of dropped blocks."""
        mask = BlockMask(
            make(self.kv_num_blocks),
            make(self.kv_indices),
            make(self.full_kv_num_blocks),
            make(self.full_kv_indices),
            BLOCK_SIZE=self.BLOCK_SIZE,
            seq_lengths=self.seq_lengths,
            mask_mod=self.mask_mod,
        )
        mask._bits = bits
        if self._transposed is not None:
            mask._transposed = tuple(make(tensor) for tensor in self._transposed)
        return mask

    def _grid(self) -> tuple[int, int]:
        (seq_q, seq_kv), (block_q, block_kv) = self.seq_lengths, self.BLOCK_SIZE
        return -(-seq_q // block_q), -(-seq_kv // block_kv)

    def _transpose(self) -> tuple[Any, ...]:
        if self._transposed is None:
            columns = self._grid()[1]
            pairs = [(self.kv_num_blocks, self.kv_indices), (self.full_kv_num_blocks, self.full_kv_indices)]
            lists: list[Any] = []
            for counts, indices in pairs:
                if counts is None:
                    lists += [None, None]
                else:
                    lists += _lists_of(_map_of(counts, indices, columns).swapaxes(-1, -2))
            if not all(list is None or _is_lasting(list) for list in lists):
                return tuple(lists)
            self._transposed = tuple(lists)
        return self._transposed


def checked_block_size(block_size: Union[int, tuple[int, int]]) -> tuple[int, int]:
    """A pair of `BLOCK_SIZES`, or ValueError."""
    return checked_pair((block_size, block_size) if isinstance(block_size, Integral) else block_size)


def checked_pair(block_size: Any) -> tuple[int, int]:
    """A pair of `BLOCK_SIZES`; TypeError for what is no pair, ValueError for another one."""
    needed = f"needed one of {', '.join(map(str, BLOCK_SIZES))}"
    if isinstance(block_size, int) or not hasattr(block_size, "__iter__"):
        raise TypeError(f"block_size is {block_size!r}, which is no pair of queries and keys, {needed}")
    pair = tuple(block_size)
    if len(pair) == 2 and not all(hasattr(size, "__index__") for size in pair):
        raise TypeError(f"block_size is {block_size!r}, which has a size that is no whole number, {needed}")
    if pair not in BLOCK_SIZES:
        raise ValueError(f"sparse blocks of {pair} (queries, keys), {needed}")
    # Python's own numbers, whatever the pair was made of.
    return BLOCK_SIZES[BLOCK_SIZES.index(pair)]


def scored_by_keys(scores: Any, tail: Any = None) -> bool:
    """Whether blocks are scored by keys: what `scores` says, and for None whether there is a tail.

    Raises:
        ValueError: something else.
    """
    if scores is None:
        return tail is not None
    if not isinstance(scores, str) or scores not in ("means", "keys"):
        raise ValueError(f'scores is {scores!r}, needed "means", "keys" or None')
    return scores == "keys"


def tail_number(tail: Any, block_kv: int, score_mod: Any = None) -> int:
    """A tail as kernels know it: 0 for none, -1 for that of a block, and for that of a row the keys of a mean.

    Raises:
        ValueError: none of the tails there are, keys that are no multiple of `block_kv`, or a tail beside a score function.
        TypeError: keys that are no whole number.
    """
    if tail is None:
        return 0
    if score_mod is not None:
        raise ValueError(
            f"a tail beside the score function `{score_mod._native.name}`: a mean stands for many keys, and what a function of "
            "pairs makes of it is not defined; leave one of them out"
        )
    if isinstance(tail, str) and tail in ("block", "row"):
        return -1 if tail == "block" else -(-_ROW_KEYS // block_kv) * block_kv
    if not isinstance(tail, (tuple, list)) or len(tail) != 2 or not isinstance(tail[0], str) or tail[0] != "row":
        raise ValueError(f'tail is {tail!r}, needed None, "block", "row" or ("row", keys), as ("row", 256)')
    keys = tail[1]
    # A compiler, which may hold a size for a variable, looks at integers alone.
    if not isinstance(keys, int) or isinstance(keys, bool):
        try:
            if isinstance(keys, bool) or "bool" in str(getattr(keys, "dtype", "")):
                raise TypeError
            keys = operator.index(keys)
        except TypeError:
            raise TypeError(
                f"tail is {tail!r}, whose keys are of type {type(keys).__name__}, needed a whole number"
            ) from None
    if keys >= 2**31:
        raise ValueError(f"a row tail over {keys} keys, needed fewer than 2³¹: no sequence is longer")
    if keys < 1 or keys % block_kv != 0:
        raise ValueError(
            f"a row tail over {keys} keys, needed a multiple of the {block_kv} keys of a sparse block: take {block_kv} or {2 * block_kv}"
        )
    return keys


def as_block_mask(mask: Any, block_size: tuple[int, int], seqs: tuple[int, int]) -> BlockMask:
    """What `attention` takes as a mask, as a `BlockMask`."""
    if isinstance(mask, BlockMask):
        return mask
    if hasattr(mask, "kv_num_blocks") and hasattr(mask, "BLOCK_SIZE"):
        return BlockMask.from_flex(mask)
    if str(getattr(mask, "dtype", "")) in _BOOLS:
        return BlockMask.from_dense(mask, seq_lengths=seqs, BLOCK_SIZE=checked_pair(block_size))
    found = f"of dtype {mask.dtype}" if hasattr(mask, "dtype") else f"a {type(mask).__name__}"
    raise TypeError(
        f"the mask is {found}, needed a tilewright.BlockMask, a bool map of blocks, or a BlockMask of FlexAttention"
    )


def checked_flag(what: str, value: Any) -> Any:
    """A bool, of numpy's too, as Python's own; TypeError for anything else, of which "no" would mean yes."""
    if value is True or value is False or isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{what} is {value!r}, of type {type(value).__name__}, needed True or False")


def function_numbers(score_mod: Any, mask_mod: Any, is_causal: bool) -> tuple[int, int]:
    """The numbers by which kernels know the functions of a call; 0 for none."""
    if score_mod is None and mask_mod is None:
        return 0, _native.CAUSAL if is_causal else 0
    if is_causal and mask_mod is not None:
        raise ValueError("is_causal and mask_mod are both given: write the causal condition into the mask function")
    score = 0 if score_mod is None else _number("score_mod", score_mod)
    if is_causal:
        return score, _native.CAUSAL
    return score, 0 if mask_mod is None else _number("mask_mod", mask_mod)


def _number(what: str, function: Any) -> int:
    number = getattr(function, "number", None)
    if isinstance(number, int):
        return number
    raise TypeError(
        f"{what} is a {type(function).__name__}, needed a device function: wrap it with `tilewright.{what}(…)`, once, outside of loops"
    )


def _flex_function(mask: Any) -> MaskFunction:
    """The device function for the partial blocks of FlexAttention's mask; None when it would keep everything."""
    if mask.mask_mod is causal:
        return "causal"
    try:
        return mask_mod_of(mask)
    except TranslationError:
        # Without partial blocks nobody asks it.
        if int(mask.kv_num_blocks.sum()) == 0:
            return None
        raise


def _refuse_masked_array(map: Any) -> None:
    import numpy

    if isinstance(map, numpy.ma.MaskedArray):
        raise TypeError(
            "the block map is a numpy.ma.MaskedArray, whose mask would be ignored: pass `map.filled(False)` to drop the masked blocks"
        )


def _check_is_array(what: str, value: Any) -> None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{what} is of type {type(value).__name__}, needed a torch.Tensor or a numpy array: convert it first")


def _check_is_torch(lists: Any, purpose: str) -> None:
    if torch_of(lists) is None:
        raise TypeError(
            f"the mask's lists are of type {type(lists).__name__}, needed torch.Tensor {purpose}: make the mask of torch tensors"
        )


def _checked_lengths(seq_lengths: Any) -> tuple[Any, Any]:
    """The pair of numbers of tokens, each as Python's own; symbolic ones stay what they are."""
    if not hasattr(seq_lengths, "__iter__") or isinstance(seq_lengths, (str, bytes)) or len(pair := tuple(seq_lengths)) != 2:
        raise TypeError(f"seq_lengths is {seq_lengths!r}, needed a pair: the numbers of queries and of keys")
    return _count(pair[0]), _count(pair[1])


def _count(size: Any) -> Any:
    if isinstance(size, Integral):
        if size < 0:
            raise ValueError(f"seq_lengths has {size}, needed numbers of tokens of at least 0")
        return int(size)
    if not hasattr(size, "__index__"):
        raise TypeError(f"seq_lengths has {size!r}, of type {type(size).__name__}, needed whole numbers of tokens")
    return size


def _is_lasting(list: Any) -> bool:
    """Whether the mask may keep it: what a compiler, an exporter or a mode of fake tensors made is of no use after them."""
    torch = torch_of(list)
    return torch is None or (type(list) is torch.Tensor and not torch.compiler.is_compiling())


def _is_readable(lists: Any) -> bool:
    """Whether their contents can be read now: not of traced and fake lists, nor while a graph is captured."""
    torch = torch_of(lists)
    if torch is None:
        return True
    if torch.compiler.is_compiling() or type(lists) not in (torch.Tensor, torch.nn.Parameter) or lists.is_meta:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.maybe_current_level() is not None:
        return False
    return not (lists.is_cuda and torch.cuda.is_current_stream_capturing())


def _lists_of(map: Any) -> list[Any]:
    """Counts and ascending indices of the true entries of the last dimension; nothing waits for the GPU."""
    torch = torch_of(map)
    if torch is not None:
        order = map.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        # Both keep the strides of the map, transposed or permuted; the kernels read rows one after another.
        return [map.sum(-1, dtype=torch.int32).contiguous(), order.to(torch.int32).contiguous()]
    import numpy

    return [map.sum(-1, dtype=numpy.int32), numpy.argsort(~map, axis=-1, kind="stable").astype(numpy.int32)]


def _bits_of(map: Any) -> Any:
    """The entries of a bool map's last dimension as bits, 32 in an int32, the first the lowest, and the words of all rows in one dimension. Nothing
    waits for the GPU."""
    rows, columns = tuple(map.shape[:-1]), map.shape[-1]
    words = -(-columns // 32)
    torch = torch_of(map)
    if torch is not None:
        padded = map.new_zeros((*rows, words * 32), dtype=torch.int64)
        padded[..., :columns] = map
        sums = (padded.reshape(*rows[:2], rows[2] * words, 32) << torch.arange(32, device=map.device)).sum(-1)
        return torch.where(sums < 1 << 31, sums, sums - (1 << 32)).to(torch.int32)
    import numpy

    padded = numpy.zeros((*rows, words * 32), dtype=numpy.uint32)
    padded[..., :columns] = map
    sums = (padded.reshape(*rows[:2], rows[2] * words, 32) << numpy.arange(32, dtype=numpy.uint32)).sum(-1, dtype=numpy.uint32)
    return sums.view(numpy.int32)


def _map_of_bits(bits: Any, columns: int) -> Any:
    """The bool map of the first `columns` bits of the last dimension."""
    torch = torch_of(bits)
    if torch is not None:
        each = bits[..., None] >> torch.arange(32, device=bits.device, dtype=bits.dtype) & 1
    else:
        import numpy

        each = bits[..., None] >> numpy.arange(32, dtype=bits.dtype) & 1
    return each.reshape(*bits.shape[:-1], bits.shape[-1] * 32)[..., :columns] != 0


def _spread(lists: Any, leading: tuple[int, int]) -> Any:
    """Lists with these numbers of batches and heads, instead of 1; the same object where they have them."""
    shape = (*leading, *lists.shape[2:])
    if tuple(lists.shape) == shape:
        return lists
    if torch_of(lists) is not None:
        return lists.expand(shape).contiguous()
    import numpy

    return numpy.ascontiguousarray(numpy.broadcast_to(lists, shape))


def _map_of(counts: Any, indices: Any, columns: int) -> Any:
    """The bool map of lists; counts past the list are cut and numbers that are no column skipped, as the kernels do."""
    torch = torch_of(counts)
    width = indices.shape[-1]
    if torch is not None:
        listed = torch.arange(width, device=counts.device) < counts[..., None]
        where = torch.where(listed & (indices >= 0) & (indices < columns), indices, columns).long()
        map = torch.zeros((*counts.shape, columns + 1), dtype=torch.bool, device=counts.device)
        return map.scatter(-1, where, True)[..., :columns]
    import numpy

    listed = numpy.arange(width) < counts[..., None]
    where = numpy.where(listed & (indices >= 0) & (indices < columns), indices, columns)
    map = numpy.zeros((*counts.shape, columns + 1), dtype=bool)
    numpy.put_along_axis(map, where, True, axis=-1)
    return map[..., :columns]
