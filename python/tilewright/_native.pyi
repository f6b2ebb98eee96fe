"""The native module. Its functions take the arguments of the package's own, in order, with device functions by number."""

from typing import Any, Optional, Union

VERSION: str
CAUSAL: int
ROW_KEYS: int

class Error(RuntimeError):
    """What a call could not do for a reason other than its arguments: a GPU, NVRTC, the cache, or something not there yet."""

class DeviceFunction:
    """A checked score or mask function with the values of its captures: `tilewright.DeviceFunction` wraps it."""

    def __init__(self, kind: str, source: str, captures: list[tuple[str, Any]]) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def cuda(self) -> str: ...
    def captures(self) -> list[Any]: ...
    def run(self, score: float, b: int, h: int, q: int, kv: int) -> Union[float, bool]: ...
    def gradient(self, score: float, b: int, h: int, q: int, kv: int) -> float: ...

def device_function(number: int) -> Optional[DeviceFunction]: ...
def block_sizes() -> list[tuple[int, int]]: ...
def best_device() -> str: ...
def gpu_name(ordinal: int) -> str: ...
def set_package_folders(folders: list[str]) -> None: ...
def bind_torch(torch: Any) -> None: ...
def sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    top_k: Optional[float],
    top_p: Optional[float],
    block_q: int,
    block_kv: int,
    scale: Optional[float],
    score_mod: int,
    mask_mod: int,
    enable_gqa: bool,
    heads_last: bool,
    want_lse: bool,
    tail: int = 0,
    by_keys: bool = False,
) -> tuple[Any, Optional[Any]]: ...
def block_mask(
    q: Any,
    k: Any,
    top_k: Optional[float],
    top_p: Optional[float],
    block_q: int,
    block_kv: int,
    scale: Optional[float],
    mask_mod: int,
    enable_gqa: bool,
    dropped: bool = False,
    by_keys: bool = False,
) -> list[Any]: ...
def attention(
    q: Any,
    k: Any,
    v: Any,
    kv_counts: Any,
    kv_indices: Any,
    full_counts: Optional[Any],
    full_indices: Optional[Any],
    block_q: int,
    block_kv: int,
    scale: Optional[float],
    score_mod: int,
    mask_mod: int,
    enable_gqa: bool,
    heads_last: bool,
    dropped: Optional[Any] = None,
    tail: int = 0,
) -> tuple[Any, Any]: ...
def attention_backward(
    d_out: Any,
    d_lse: Optional[Any],
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    kv_counts: Any,
    kv_indices: Any,
    full_counts: Optional[Any],
    full_indices: Optional[Any],
    block_q: int,
    block_kv: int,
    scale: Optional[float],
    score_mod: int,
    mask_mod: int,
    enable_gqa: bool,
    dropped: Optional[Any] = None,
    tail: int = 0,
) -> tuple[Any, Any, Any]: ...

class TokenGrid:
    """The order of the tokens of a video. Use `tilewright.TokenGrid`, which wraps it."""

    def __new__(
        cls,
        grid: tuple[int, int, int],
        tile: Optional[tuple[int, int, int]],
        before: int,
        after: int,
        block_size: tuple[int, int],
    ) -> "TokenGrid": ...
    @property
    def grid(self) -> tuple[int, int, int]: ...
    @property
    def tile(self) -> tuple[int, int, int]: ...
    @property
    def description(self) -> str: ...
    def __len__(self) -> int: ...
    def order(self) -> list[int]: ...
    def inverse(self) -> list[int]: ...
    def block_of(self, token: int) -> int: ...
    def move(self, tensor: Any, out: Any, restore: bool) -> None: ...
