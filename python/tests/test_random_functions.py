"""Random Python functions: the translation gives what Python gives, to the bit.

Numbers are small multiples of 1/4, which f32 and Python's floats both hold exactly, so that every comparison is decided alike.
"""

from __future__ import annotations

import linecache
import random

import pytest

from tilewright import mask_mod, score_mod

FUNCTIONS = 300
ELEMENTS = 40

# Captured by the random functions: globals of their module.
CAPTURED = {"size": 13, "offset": -3, "half": 0.5, "flag": True, "off": False, "ids": [i * i % 11 for i in range(70)], "slopes": [0.25, -1.5, 2.0, 0.75]}


class Grower:
    """Writes expressions of a type from random choices."""

    def __init__(self, seed: int):
        self.pick = random.Random(seed)
        self.variables = {"int": ["b", "h", "q", "kv", "size", "offset"], "float": ["half"], "bool": ["flag", "off"]}

    def int(self, depth: int) -> str:
        choose = self.pick.randrange
        if depth == 0:
            return self.pick.choice([*self.variables["int"], *self.variables["int"], str(choose(9)), f"-{1 + choose(5)}"])
        a, b = self.int(depth - 1), self.int(depth - 1)
        divisor = self.pick.choice(["3", "7", "-4", "size", "offset", "(h + 1)", "(h - 9)", "(kv + 2)"])
        return [
            lambda: f"({a} + {b})", lambda: f"{a} - ({b})", lambda: f"({a}) * {choose(5) - 2}", lambda: f"({a}) // {divisor}",
            lambda: f"({a}) % {divisor}", lambda: f"abs({a})", lambda: f"min({a}, {b})", lambda: f"max({a}, {b})", lambda: f"-({a})",
            lambda: f"({a} if {self.bool(depth - 1)} else {b})", lambda: f"int({self.float(depth - 1)})",
            lambda: f"ids[{self.pick.choice(['q', 'kv', 'abs(q - kv)', 'q - kv'])}]", lambda: f"(({a}) % 5) ** 2",
            lambda: f"(({a}) & 7 | {choose(4)})", lambda: f"int({self.bool(depth - 1)})",
        ][choose(15)]()  # fmt: skip

    def float(self, depth: int) -> str:
        choose = self.pick.randrange
        if depth == 0:
            return self.pick.choice(["score", "score", *self.variables["float"], "1.5", "-0.25", "2.0", "slopes[h]"])
        a, b = self.float(depth - 1), self.float(depth - 1)
        return [
            lambda: f"({a} + {b})", lambda: f"{a} - ({b})", lambda: f"({a}) * {self.pick.choice(['0.5', '2', '-1', '-2.0'])}",
            lambda: f"({a} + {self.int(depth - 1)})", lambda: f"({a}) % {self.pick.choice(['2.5', '-1.5', '4'])}", lambda: f"({a}) / 2",
            lambda: f"abs({a})", lambda: f"min({a}, {b})", lambda: f"max({a}, {self.int(depth - 1)})",
            lambda: f"({a} if {self.bool(depth - 1)} else {b})", lambda: f"float({self.int(depth - 1)})", lambda: f"-({a})",
            lambda: f"({a}) // {self.pick.choice(['0.5', '2'])}", lambda: f"({a} + ({self.bool(depth - 1)}))",
        ][choose(14)]()  # fmt: skip

    def bool(self, depth: int) -> str:
        choose, compare = self.pick.randrange, lambda: self.pick.choice(["<", "<=", ">", ">=", "==", "!="])
        if depth == 0:
            return self.pick.choice([*self.variables["bool"], "q >= kv", "h == 2", "q < kv", "True"])
        a, b = self.bool(depth - 1), self.bool(depth - 1)
        number = self.int if choose(2) else self.float
        return [
            lambda: f"({a} and {b})", lambda: f"({a} or {b})", lambda: f"(not ({a}))", lambda: f"({a}) & ({b})", lambda: f"({a}) ^ ({b})",
            lambda: f"({number(depth - 1)} {compare()} {self.int(depth - 1)})", lambda: f"({a}) == ({b})",
            lambda: f"({self.int(depth - 1)} {compare()} {number(depth - 1)} {compare()} {self.int(depth - 1)})",
            lambda: f"({self.int(depth - 1)} in (0, {choose(5)}, size))", lambda: f"({a} if {b} else {self.bool(depth - 1)})",
        ][choose(10)]()  # fmt: skip

    def statements(self, kind: str, indent: str, depth: int) -> list[str]:
        """Assignments and branches, then a `return`."""
        lines, final = [], self.float if kind == "score_mod" else self.bool
        known = {key: list(names) for key, names in self.variables.items()}
        for _ in range(self.pick.randrange(4)):
            ty = self.pick.choice(["int", "float", "bool"])
            name = self.pick.choice(["x", "y", "match", "type"]) + "_" + ty
            form = self.pick.randrange(4)
            if form == 0 and name in self.variables[ty]:
                lines += [f"{indent}if {self.bool(2)}:", f"{indent}    {name} = {getattr(self, ty)(2)}"]
                if self.pick.randrange(2):
                    lines += [f"{indent}elif {self.bool(1)}:", f"{indent}    other_{ty} = {name}", f"{indent}    {name} = {getattr(self, ty)(1)}"]
            elif form == 1 and name in self.variables[ty] and ty != "bool":
                lines.append(f"{indent}{name} {self.pick.choice(['+', '-'])}= {getattr(self, ty)(2)}")
            elif form == 2 and depth:
                lines.append(f"{indent}if {self.bool(2)}:")
                lines += self.statements(kind, indent + "    ", depth - 1)
            else:
                lines.append(f"{indent}{name} = {getattr(self, ty)(2)}")
                self.variables[ty] = [*self.variables[ty], name]
        lines.append(f"{indent}return {final(3)}")
        self.variables = known
        return lines


def grown(seed: int):
    """A function of the given seed, its kind and its text."""
    kind = "mask_mod" if seed % 3 == 0 else "score_mod"
    grower = Grower(seed)
    parameters = "score, b, h, q, kv" if kind == "score_mod" else "b, h, q, kv, score=2.5"
    text = "\n".join([f"def grown_{seed}({parameters}):", *grower.statements(kind, "    ", 2)]) + "\n"
    name = f"<grown {seed}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    space = dict(CAPTURED)
    exec(compile(text, name, "exec"), space)
    return kind, space[f"grown_{seed}"], text


@pytest.mark.parametrize("start", range(0, FUNCTIONS, 50))
def test_random_functions(start):
    for seed in range(start, start + 50):
        kind, function, text = grown(seed)
        try:
            made = {"score_mod": score_mod, "mask_mod": mask_mod}[kind](function)
        except Exception as error:
            raise AssertionError(text) from error
        pick = random.Random(seed)
        for _ in range(ELEMENTS):
            position = (pick.randrange(2), pick.randrange(4), pick.randrange(70), pick.randrange(70))
            arguments = (pick.randrange(-40, 40) / 4, *position) if kind == "score_mod" else position
            expected, found = function(*arguments), made.run(*arguments)
            assert found == expected, f"{arguments}: found {found}, expected {expected}\n{text}\n{made.source}\n{made.captures}"
