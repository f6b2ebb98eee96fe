"""What a type checker makes of the public functions. PyTorch and numpy are stubs here: reading the real ones takes minutes."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

import tilewright

STUBS = {
    "torch/__init__.pyi": """
from typing import Any
from . import nn as nn
class Tensor:
    shape: tuple[int, ...]
    def __getattr__(self, name: str) -> Any: ...
def __getattr__(name: str) -> Any: ...
""",
    "torch/nn/__init__.pyi": """
from typing import Any
class Module:
    def __init__(self) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
""",
    "numpy/__init__.pyi": """
from typing import Any, Generic, TypeVar
S = TypeVar("S")
D = TypeVar("D")
class ndarray(Generic[S, D]):
    shape: tuple[int, ...]
def __getattr__(name: str) -> Any: ...
""",
}

CONFIG = """
[mypy]
[mypy-diffusers.*]
follow_imports = skip
ignore_missing_imports = True
"""

HEADER = """
from typing import Any
import numpy
import torch
import tilewright as tw
t: torch.Tensor
a: numpy.ndarray[Any, Any]
flag: bool
keep = tw.mask_mod(lambda b, h, q, kv: q >= kv)
"""

TENSOR, ARRAY = "torch.Tensor", "numpy.ndarray[Any, Any]"

# Each expression, with the type that is revealed, or with a word of the error.
FINE = {
    "tw.sparse_attention(t, t, t)": TENSOR,
    "tw.sparse_attention(a, a, a, layout='BSHD', top_k=None, mask_mod=keep)": ARRAY,
    "tw.sparse_attention(t, t, t, return_lse=True)": f"tuple[{TENSOR}, {TENSOR}]",
    "tw.sparse_attention(t, t, t, return_mask=True)": f"tuple[{TENSOR}, tilewright.mask.BlockMask[{TENSOR}]]",
    "tw.sparse_attention(a, a, a, return_lse=True, return_mask=True)": f"tuple[{ARRAY}, {ARRAY}, tilewright.mask.BlockMask[{ARRAY}]]",
    "tw.sparse_attention(t, t, t, return_lse=flag)": "Any",
    "tw.block_mask(t, t).to_dense()": TENSOR,
    "tw.block_mask(a, a).kv_indices": ARRAY,
    "tw.attention(t, t, t, tw.block_mask(t, t))": TENSOR,
    "tw.attention(a, a, a, a, return_lse=True)": f"tuple[{ARRAY}, {ARRAY}]",
    "tw.TokenGrid((4, 8, 8)).regroup(a, 1)": ARRAY,
    "tw.TokenGrid((4, 8, 8)).restore(t, dim=1)": TENSOR,
    "tw.sparse_attention(t, t, t, tail='block')": TENSOR,
    "tw.attention(t, t, t, tw.block_mask(t, t), tail=('row', 128))": TENSOR,
    "tw.sparse_attention(t, t, t, tail='row', scores='means')": TENSOR,
    "tw.block_mask(a, a, scores='keys').kv_indices": ARRAY,
    "tw.block_mask(a, a).with_admissible(a).dropped": f"{ARRAY} | None",
    "tw.block_mask(t, t).with_unlisted_dropped().dropped_map()": f"{TENSOR} | None",
    "tw.SparseAttention(layout='BSHD').layout": "Literal['BHSD'] | Literal['BSHD']",
}
WRONG = {
    "tw.sparse_attention('q', t, t)": '"str"',
    "tw.sparse_attention([1.0], t, t)": '"list[float]"',
    "tw.sparse_attention(t, a, t)": '"object"',
    "tw.sparse_attention(t, t, t, layout='SBHD')": '"str"',
    "tw.sparse_attention(t, t, t, topk=0.1)": '"top_k"',
    "tw.sparse_attention(t, t, t, score_mod=lambda s, b, h, q, kv: s)": '"Callable[',
    "tw.block_mask(t, t, layout='bhsd')": '"layout"',
    "tw.block_mask(t, 'k')": '"object"',
    "tw.attention(t, t, t, t, layout='HSD')": '"str"',
    "tw.attention(t, t, t, 'mask')": '"str"',
    "tw.TokenGrid((4, 8, 8)).regroup('x', 1)": '"str"',
    "tw.SparseAttention(layout='x')": '"layout"',
    "tw.sparse_attention(t, t, t, tail='rows')": '"str"',
    "tw.attention(t, t, t, t, tail=128)": '"int"',
    "tw.SparseAttention(tail=('block', 64))": '"tail"',
    "tw.sparse_attention(t, t, t, scores='mean')": '"str"',
    "tw.block_mask(t, t, scores='mean')": '"scores"',
    "tw.SparseAttention(scores=True)": '"scores"',
}


def test_layouts_and_operands_are_checked(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    for name, text in STUBS.items():
        (tmp_path / "stubs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stubs" / name).write_text(text, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(CONFIG, encoding="utf-8")
    program = HEADER + "".join(f"reveal_type({line})\n" for line in FINE) + "".join(f"{line}\n" for line in WRONG)
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    folders = [str(tmp_path / "stubs"), str(pathlib.Path(tilewright.__file__).parent.parent)]
    if "site-packages" in folders[1]:
        folders.pop()  # mypy finds packages with types there
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "--hide-error-context", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
    )
    said = {}
    for line in done.stdout.splitlines():
        if line.startswith("program.py:") and ("error:" in line or "Revealed type" in line):
            said.setdefault(int(line.split(":")[1]), []).append(line)
    first = HEADER.count("\n") + 1
    for number, (expression, found) in enumerate(FINE.items(), first):
        revealed = said.get(number, [done.stdout + done.stderr])
        assert f'Revealed type is "{found}"' in revealed[0] and len(revealed) == 1, (expression, revealed)
    for number, (expression, word) in enumerate(WRONG.items(), first + len(FINE)):
        assert any("error:" in line and word in line for line in said.get(number, [])), (expression, said.get(number))
    assert len(said) == len(FINE) + len(WRONG), done.stdout
