"""``x in (1, 2)`` and ``x in range(n)``."""

from __future__ import annotations

import ast
from typing import Any

from .values import F32, Static, Sym, bool_literal, int_literal
from .walker import Walker

# What is compared one by one.
MOST_ITEMS = 256


def contains(walk: Walker, node: ast.AST, left: Any, right: Any) -> Any:
    """Whether a tuple, a list or a range holds a value of the GPU; a Python bool."""
    if isinstance(right, Static) and isinstance(right.obj, range) and not isinstance(left, Static):
        return walk.weakened(_in_range(walk, node, walk.symbol(left, node), right))
    if isinstance(right, Static) and isinstance(right.obj, (tuple, list)) and len(right.obj) > MOST_ITEMS:
        _too_long(walk, node, len(right.obj))
    items = walk.items(right, node)
    if len(items) > MOST_ITEMS:
        _too_long(walk, node, len(items))
    value = walk.named(walk.symbol(left, node), "x")
    equal = [walk.do.compare(ast.Eq(), value, walk.symbol(item, node), node) for item in items]
    return walk.weakened(walk.do.all_of(equal, "||") if equal else bool_literal(False))


def _too_long(walk: Walker, node: ast.AST, length: int) -> None:
    reason = (
        f"`in` compares with each of {length} items, at most {MOST_ITEMS}: capture a tensor of bools, as in "
        "`allowed = torch.zeros(n, dtype=torch.bool); allowed[ids] = True`, and write `allowed[q]`"
    )
    walk.fail(node, reason)


def _in_range(walk: Walker, node: ast.AST, value: Sym, known: Static) -> Sym:
    """Between its ends, and on a step: no comparison with each."""
    numbers = known.obj
    if not numbers:
        return bool_literal(False)
    if numbers.step < 0:
        numbers = numbers[::-1]
    if numbers[-1] - numbers[0] >= 2**31:
        walk.fail(node, "this range is longer than an i32 counts: compare with `<` and `<=`")
    whole = walk.named(walk.do.to_i32(value), "x")
    parts = [] if value.ty != F32 else [walk.do.compare(ast.Eq(), walk.do.to_f32(whole), value, node)]

    def end(what: str, number: int) -> Sym:
        static = Static.of(number) if known.literal else Static(number, f"{known.name}_{what}", (what, known.origin))
        return walk.symbol(static, node)

    first, last = end("first", numbers[0]), end("last", numbers[-1])
    parts.append(walk.do.compare(ast.GtE(), whole, first, node))
    parts.append(walk.do.compare(ast.LtE(), whole, last, node))
    if numbers.step != 1:
        distance = walk.do.binary(ast.Sub(), whole, first, node)
        rest = walk.do.binary(ast.Mod(), distance, end("step", numbers.step), node)
        parts.append(walk.do.compare(ast.Eq(), rest, int_literal(0), node))
    return walk.do.all_of(parts)
