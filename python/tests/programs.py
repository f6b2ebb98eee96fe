"""Random programs of the documented subset, as text, for `test_function_programs.py`.

A program is a score or mask function with what it closes over (`space`). Each expression has a type: a float, an integer or
a bool tensor, so that what is written is what PyTorch takes too.
"""

from __future__ import annotations

import functools
import linecache
import math
from typing import Any, Callable

import numpy as np
import torch
from hypothesis import strategies as st

POSITIONS, HEADS, BATCH = 40, 4, 2


def space() -> dict[str, Any]:
    """What programs close over, made anew: numbers, tensors, arrays, lists and functions of every kind."""
    generator = torch.Generator().manual_seed(3)
    quarters = lambda *shape: torch.randint(-20, 20, shape, generator=generator) / 4  # noqa: E731

    def helper(u, v, w=2, *, scale=1.5):
        if u > v:
            return u * scale
        return v - w

    def twice(function):
        @functools.wraps(function)
        def inner(*args, **kwargs):
            return function(*args, **kwargs) * 2

        return inner

    @twice
    def decorated(x, shift=1):
        return x + shift

    class Line:
        def __init__(self, slope):
            self.slope = slope

        def __call__(self, x, y=0):
            return x * self.slope + y

        def at(self, x):
            return self(x, y=self.slope)

    spectrum = torch.complex(quarters(HEADS), quarters(HEADS))
    return {
        "torch": torch, "F": torch.nn.functional, "math": math, "np": np,
        # Numbers
        "size": 13, "offset": -3, "half": 0.5, "flag": True, "off": False, "none": None, "mode": "causal",
        "np_five": np.int64(5), "np_half": np.float32(0.5), "tau": torch.tensor(0.75), "five": torch.tensor(5), "yes": torch.tensor(True),
        # Tables
        "ids": torch.arange(POSITIONS) // 7, "ids32": (torch.arange(POSITIONS, dtype=torch.int32) * 5) % 11,
        "ids8": (torch.arange(POSITIONS) // 9).to(torch.uint8), "table": quarters(HEADS, 2 * POSITIONS),
        "bias": quarters(HEADS, POSITIONS).double(), "turned": quarters(POSITIONS, HEADS).mT, "allowed": torch.arange(POSITIONS) % 3 != 1,
        "lens": torch.tensor([11, 29]), "cube": torch.arange(2 * 3 * 4).reshape(2, 3, 4), "halves": quarters(HEADS).bfloat16(),
        "np_ids": np.arange(POSITIONS)[::-1] // 5, "np_bias": quarters(POSITIONS).numpy(), "slopes": [0.25, -1.5, 2.0, 0.75],
        "id_list": [i * i % 11 for i in range(POSITIONS)], "flags": (True, False, True, True), "lazy": spectrum.conj().imag,
        # Functions
        "helper": helper, "decorated": decorated, "partial": functools.partial(helper, w=3), "line": Line(0.5), "at": Line(-2.0).at,
        "cached": functools.cache(lambda x: x * 0.25),
    }  # fmt: skip


class Writer:
    """Writes expressions of a type; ``draw`` makes the choices."""

    def __init__(self, draw: Callable, *, smooth: bool):
        self.draw = draw
        # Without what PyTorch cuts derivatives off at: Python's numbers of tensors.
        self.smooth = smooth
        self.names: dict[str, list[str]] = {"float": ["score"], "int": ["b", "h", "q", "kv"], "bool": []}

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def named(self, function: str, *arguments: tuple[str, str], options: tuple[str, ...] = ()) -> str:
        """A call with some of its arguments by name, in any order."""
        by_position = self.draw(st.integers(0, len(arguments)))
        rest = self.draw(st.permutations([f"{name}={value}" for name, value in arguments[by_position:]] + list(options)))
        return f"{function}({', '.join([value for _, value in arguments[:by_position]] + rest)})"

    def of(self, ty: str, depth: int) -> str:
        return {"float": self.float, "int": self.int, "bool": self.bool}[ty](depth)

    def choice(self, ty: str, depth: int) -> str:
        """What picks one of two values of a type."""
        a, b, c = self.of(ty, depth), self.of(ty, depth), self.bool(depth)
        return self.pick(
            lambda: f"({a} if {c} else {b})",
            lambda: self.named("torch.where", ("condition", f"torch.as_tensor({c})" if c in ("flag", "off") else c), ("input", a), ("other", b)),
            lambda: f"({a} and {b})",
            lambda: f"({a} or {b})",
            lambda: f"({self.pick('none', 'off', '0', 'size', 'mode and none')} or {a})",
            lambda: f"(flag and {a})",
        )()

    def float(self, depth: int) -> str:
        if depth <= 0:
            return self.pick(
                "score", "score", *self.names["float"], "half", "np_half", "tau", "1.5", "-0.25", "slopes[h]", "table[h, q - kv + 40]",
                "bias[h][q]", "turned[h, kv]", "np_bias[kv]", "lazy[h]", "halves[h].float()", "table[h, -1]", "(table * 2)[h, kv]",
            )  # fmt: skip
        a, b, i = self.float(depth - 1), self.float(depth - 1), self.int(depth - 1)
        number = self.pick("0.5", "2", "-1.5", "half", "size", "3")
        forms = [
            lambda: f"({a} {self.pick('+', '-', '*')} {b})",
            lambda: f"({a} {self.pick('+', '-', '*')} {i})",
            lambda: f"({a} + {self.bool(depth - 1)})",
            lambda: f"({a} {self.pick('/', '//', '%')} {number})",
            lambda: f"({number} {self.pick('/', '//', '%')} ({a} + 20.25))",
            lambda: f"(-{a})",
            lambda: f"abs({a})",
            lambda: f"torch.{self.pick('abs', 'tanh', 'sigmoid', 'sin', 'cos', 'square', 'sign', 'relu', 'floor', 'ceil', 'trunc', 'exp2', 'neg')}({self.pick('', 'input=')}{a})",
            lambda: f"({a} * tau).{self.pick('abs', 'tanh', 'sigmoid', 'square', 'sign', 'relu', 'floor', 'ceil', 'float', 'clone', 'tan')}()",
            lambda: f"F.{self.pick('softplus', 'silu', 'logsigmoid', 'relu')}({a})",
            lambda: self.pick(f"F.gelu({a}, approximate='tanh')", f"torch.log1p(abs({a}))", f"torch.expm1(torch.clamp({a}, max=3))", f"torch.log({a} * {a} + 1)", f"torch.sqrt({a} * {a} + 0.25)", f"torch.rsqrt({a} * {a} + 1)", f"torch.log10(abs({a}) + 2)"),
            lambda: self.named(f"torch.{self.pick('add', 'sub', 'mul', 'subtract', 'multiply')}", ("input", a), ("other", b)),
            lambda: self.named(f"torch.{self.pick('div', 'remainder', 'fmod', 'true_divide', 'floor_divide')}", ("input", a), ("other", number)),
            lambda: self.named(f"torch.{self.pick('minimum', 'maximum', 'fmin', 'fmax')}", ("input", f"({a} + 0 * score)"), ("other", f"({b} + 0 * tau)")),
            lambda: self.named("torch.pow", ("input", a), ("exponent", self.pick("2", "3", "2.0", "0", "np_five - 3"))),
            lambda: f"({a} ** {self.pick('2', '3', '1', '2.0')})",
            lambda: f"({self.pick('2.0', '0.5', '2', 'half')} ** ({a} * tau).{self.pick('clamp(-4, 4)', 'clamp(max=2)', 'clamp(-3, max=3)')})",
            lambda: self.named("torch.clamp", ("input", f"({a} * tau)"), options=self.pick(("min=-1", "max=2.5"), ("max=half",), ("min=offset", "max=size"), ("min=tau",))),
            lambda: f"({a} * tau).{self.pick('clamp', 'clip')}({self.pick('-2, 2', 'max=1', 'min=-half, max=half', '-1', 'None, 2')})",
            lambda: f"({a} * tau).where({self.bool(0)} & (q >= 0), {self.pick(b, '0.0', '-1')})",
            lambda: f"({a} * tau).to({self.pick('torch.float32', 'dtype=torch.float32', 'tau', 'tau.dtype')})",
            lambda: self.named("helper", ("u", a), ("v", b), options=self.pick((), ("scale=0.5",), ("w=1", "scale=half"))),
            lambda: self.pick(f"decorated({a})", f"decorated({a}, shift=half)", f"decorated(shift=2, x={a})", f"partial({a}, {b})", f"partial(v={a}, u=half)", f"line({a})", f"line({a}, y={b})", f"at({a})", f"cached({a})"),
            lambda: self.choice("float", depth - 1),
            lambda: f"(torch.full_like({self.pick('fill_value=' + number + ', input=score', 'score, ' + number)}) * {a})",
            lambda: f"({i} / {self.pick('2', '4', '8.0')})",
        ]  # fmt: skip
        if not self.smooth:
            forms += [
                lambda: f"math.{self.pick('tanh', 'sin', 'fabs', 'floor', 'ceil')}({a})",
                lambda: f"math.{self.pick('remainder', 'fmod')}({a}, {self.pick('2.5', '-1.5', '3')})",
                lambda: f"math.log(abs({a}) + 1, {self.pick('2', '10', 'math.e')})",
                lambda: f"float({self.int(depth - 1)})",
                lambda: f"{self.pick('min', 'max')}({a}, {b}, {self.pick('half', '1', 'size')})",
            ]
        return self.pick(*forms)()

    def int(self, depth: int) -> str:
        if depth <= 0:
            return self.pick(
                *self.names["int"], "q", "kv", "size", "offset", "np_five", "five", str(self.draw(st.integers(-5, 9))), "ids[q]", "ids32[kv]",
                "id_list[q]", "np_ids[kv]", "lens[b]", "cube[b, q % 3, h]", "cube[b][kv % 3][h]", "len(ids)", "ids.shape[0]", "ids.max()",
                "ids8[q].int()", "ids[-1]", "ids[q - kv]",
            )  # fmt: skip
        a, b = self.int(depth - 1), self.int(depth - 1)
        divisor = self.pick("3", "-4", "7", "size", "offset", "(h + 1)", "(h - 9)", "five")
        forms = [
            lambda: f"({a} {self.pick('+', '-', '+', '&', '|', '^')} {b})",
            lambda: f"({a} * {self.pick('2', '-1', '3', '0')})",
            # It wraps.
            lambda: f"({self.pick('q', 'kv', '(q - kv)', 'abs(q - kv)')} * 40_000_003 * ({self.pick('kv', 'h')} + 7) {self.pick('%', '// 9 %')} {self.pick('97', '-8', 'size')})",
            lambda: f"({a} {self.pick('//', '%')} {divisor})",
            lambda: self.named(f"torch.{self.pick('add', 'sub', 'mul')}", ("input", f"(q + {a})"), ("other", self.pick("kv", "2", "h"))),
            lambda: self.named(f"torch.{self.pick('remainder', 'fmod', 'floor_divide')}", ("input", f"(q - {a})"), ("other", divisor)),
            lambda: f"(-({a}))",
            lambda: f"(~({a} + q))",
            lambda: f"abs({a})",
            lambda: f"torch.{self.pick('abs', 'square', 'sign', 'relu', 'floor', 'neg')}((kv - {a}) % 12 - 4)",
            lambda: f"((({a}) % 6) ** {self.pick('2', '3')})",
            lambda: self.named("torch.clamp", ("input", f"(q + {a})"), options=self.pick(("min=2", "max=size"), ("max=9",), ("min=offset",))),
            lambda: f"(q - {a}).{self.pick('clamp(max=h)', 'clamp(1, 20)', 'clip(min=3)', 'int()', 'long()', 'to(torch.int32)', 'abs()')}",
            lambda: f"({self.pick('ids + 1', 'ids.roll(2)', 'ids.roll(3)', 'ids.clamp(max=3)', 'ids.clamp(min=3)', 'ids * offset', 'torch.minimum(ids, five)', 'ids[1:]', '-ids')})[{self.pick('q', 'kv', 'abs(q - kv)')} % 39]",
            lambda: f"({self.float(depth - 1)} * tau).clamp(-50, 50).{self.pick('int()', 'long()', 'to(torch.int32)')}",
            lambda: self.choice("int", depth - 1),
            lambda: f"({a} + (q > kv))",
        ]  # fmt: skip
        if not self.smooth:
            forms += [
                lambda: f"int(torch.clamp({self.float(depth - 1)} * tau, -50, 50))",
                lambda: f"int({self.bool(depth - 1)})",
                lambda: f"{self.pick('min', 'max')}({a}, {b})",
                lambda: f"{self.pick('min', 'max')}(({a}, {b}, 4, 7))",
            ]
        return self.pick(*forms)()

    def bool(self, depth: int) -> str:
        compare = self.pick("<", "<=", ">", ">=", "==", "!=")
        if depth <= 0:
            return self.pick(*self.names["bool"], "(q >= kv)", "(h == 2)", "(q < kv)", "allowed[kv]", "(ids[q] == ids[kv])", "yes", "flag", "off")
        a, b = self.bool(depth - 1), self.bool(depth - 1)
        x, y = (self.int, self.float)[self.draw(st.integers(0, 1))](depth - 1), self.int(depth - 1)
        tensor = f"({self.int(0)} < q)"
        forms = [
            lambda: f"({x} {compare} {y})",
            lambda: f"({self.int(0)} {compare} {x} {compare} {y})",
            lambda: f"({a} and {b})",
            lambda: f"({a} or {b})",
            lambda: f"(not {a})",
            lambda: f"(not ({a} and {x}))",
            lambda: f"(({a}) {self.pick('&', '|', '^')} {tensor})",
            lambda: f"(~({tensor} & {a}))",
            lambda: f"({y} {self.pick('in', 'not in')} {self.pick('(0, 3, size)', '[1, 2, q]', 'range(7)', 'range(2, size)', 'range(30, -5, -3)', 'range(len(ids))', 'id_list', 'flags', '()')})",
            lambda: self.named(f"torch.{self.pick('ge', 'lt', 'eq', 'ne', 'logical_and', 'logical_or', 'logical_xor')}", ("input", f"(q + {y})"), ("other", "kv")),
            lambda: f"torch.{self.pick('isnan', 'isinf', 'isfinite')}({self.float(depth - 1)} * tau)",
            lambda: f"({self.pick('ids == 1', 'ids.eq(2)', 'ids32 > ids', 'ids != five', '~allowed', 'np_ids == 3', 'ids8 == 2', 'allowed | (ids < 2)')})[{self.pick('q', 'kv')}]",
            lambda: f"(mode == 'causal' and {a})",
            lambda: f"(none is not None or {a})",
            lambda: f"({self.float(depth - 1)} * tau).bool()",
            lambda: self.choice("bool", depth - 1) if depth > 1 else a,
        ]  # fmt: skip
        return self.pick(*forms)()

    def statements(self, result: str, indent: str, depth: int, *, inside: bool = False) -> list[str]:
        """Assignments, branches and loops, then a `return`."""
        lines, known = [], {ty: list(names) for ty, names in self.names.items()}
        for _ in range(self.draw(st.integers(0, 3))):
            ty = self.pick("int", "float", "bool")
            name = f"{self.pick('x', 'y', 'type', 'match')}_{ty}"
            form = self.pick("set", "set", "if", "branch", "loop", "augmented")
            if form == "if" and name in self.names[ty]:
                lines += [f"{indent}if {self.bool(1)}:", f"{indent}    {name} = {self.of(ty, 1)}"]
                if self.draw(st.booleans()):
                    lines += [f"{indent}elif {self.bool(1)}:", f"{indent}    {name} = {self.of(ty, 1)}"]
            elif form == "branch" and depth:
                lines.append(f"{indent}if {self.bool(1)}:")
                lines += self.statements(result, indent + "    ", depth - 1)
            elif form == "loop" and name in self.names[ty] and ty != "bool":
                lines += [f"{indent}for step in {self.pick('range(3)', '(1, 2)', 'range(size % 4)')}:", f"{indent}    {name} = {name} - step * {self.of(ty, 0)}"]
            elif form == "augmented" and name in self.names[ty] and ty != "bool":
                lines.append(f"{indent}{name} {self.pick('+', '-')}= {self.of(ty, 1)}")
            else:
                lines.append(f"{indent}{name} = {self.of(ty, 2)}")
                self.names[ty] = [*self.names[ty], name]
        lines.append(f"{indent}return {self.of(result, 3)}")
        self.names = known
        return lines


@st.composite
def programs(draw: Callable, kind: str, *, smooth: bool = False) -> str:
    """The text of a function ``f`` of a kind."""
    writer = Writer(draw, smooth=smooth)
    if kind == "mask_mod":
        writer.names["float"] = ["table[h, q]"]
    parameters = "score, b, h, q, kv" if kind == "score_mod" else "b, h, q, kv, score=tau"
    lines = writer.statements("float" if kind == "score_mod" else "bool", "    ", 2)
    return "\n".join([f"def f({parameters}):", *lines]) + "\n"


def function_of(text: str, names: dict[str, Any]) -> Callable:
    """The function of a text, which the translator finds as it finds a notebook's cell."""
    name = f"<program {hash(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), names)
    return names["f"]
