"""Expressions: names, operators, choices and indices. What is known at translation is computed by Python."""

from __future__ import annotations

import ast
import operator
import types
from dataclasses import dataclass
from typing import Any

from .captures import NotCapturable, is_array, scalar
from .values import BOOL, I32, ElementType, Static, Sym, Tup, Undefined, bool_literal

# A function may take this many steps in all, with its loops and calls written out.
_MAX_STEPS = 20_000

_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not, ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b, ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
    ast.Invert: operator.invert,
}  # fmt: skip


@dataclass
class Partial:
    """An array with fewer indices than dimensions: ``table[b]`` of ``table[b][h]``."""

    array: Static
    indices: list[Sym]


class Expressions:
    """The part of the walk that knows expressions."""

    def expr(self, node: ast.expr) -> Any:
        """The value of an expression."""
        self.steps += 1
        if self.steps > _MAX_STEPS:
            self.fail(node, f"it takes more than {_MAX_STEPS} steps with its loops and calls written out: make it smaller")
        visit = getattr(self, f"_{type(node).__name__.lower()}", None)
        if visit is None:
            what = _LEFT_OUT.get(type(node).__name__, "this expression is")
            reason = f"{what} not supported in a device function: use numbers, comparisons, `a if c else b` and functions of torch or math"
            self.fail(node, reason)
        return visit(node)

    def formula(self, tree: ast.expr, names: dict[str, Any], at: ast.AST) -> Sym:
        """A formula over `names`; errors point at the call that stands for it."""
        outer, self.env = self.env, names
        value = self.symbol(self.expr(tree), at)
        self.env = outer
        return value

    def _constant(self, node: ast.Constant) -> Any:
        return Static.of(node.value)

    def _name(self, node: ast.Name) -> Any:
        name, frame = node.id, self.frames[-1]
        if name in self.env:
            value = self.env[name]
            if isinstance(value, Undefined):
                self.fail(node, value.reason)
            return value
        if name in frame.overrides:
            return Static(frame.overrides[name], name, ("override", name))
        function = frame.function
        if name in function.__code__.co_freevars:
            cell = function.__closure__[function.__code__.co_freevars.index(name)]
            try:
                return Static(cell.cell_contents, name, ("cell", id(cell)))
            except ValueError:
                self.fail(node, f"`{name}` has no value yet: define it before the function is translated")
        if name in function.__globals__:
            return Static(function.__globals__[name], name, ("global", id(function.__globals__), name))
        known = function.__globals__.get("__builtins__", {})
        known = known if isinstance(known, dict) else vars(known)
        if name in known:
            return Static(known[name], name, ("builtin", name))
        self.fail(node, f"`{name}` is not defined: define it before the function is translated")

    def _attribute(self, node: ast.Attribute) -> Any:
        value = self.expr(node.value)
        if isinstance(value, Static):
            try:
                obj = getattr(value.obj, node.attr)
            except AttributeError as error:
                self.fail(node, f"{error}")
            constant = isinstance(value.obj, types.ModuleType) and value.obj.__name__.partition(".")[0] in _LIBRARIES
            of_type = is_array(value.obj) or type(value.obj).__name__ in ("finfo", "iinfo")
            literal = (constant or (of_type and value.literal)) and isinstance(obj, (bool, int, float))
            return Static(obj, node.attr, ("attribute", value.origin, node.attr), literal)
        if isinstance(value, Sym) and node.attr == "dtype":
            return ElementType(value.ty)
        if isinstance(value, Sym) and node.attr == "device":
            return Static.of(None)
        self.fail(node, f"`.{node.attr}` of a value of the GPU is not supported: positions and scores are single numbers")

    def _tuple(self, node: ast.Tuple | ast.List) -> Any:
        items = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                items.extend(self.items(self.expr(item.value), item))
            else:
                items.append(self.expr(item))
        if items and all(isinstance(item, Static) and item.literal for item in items):
            return Static.of(tuple(item.obj for item in items))
        return Tup(items)

    _list = _tuple

    def items(self, value: Any, node: ast.AST) -> list:
        """What a tuple, list or range holds."""
        if isinstance(value, Tup):
            return value.items
        if isinstance(value, Static) and isinstance(value.obj, (tuple, list, range)):
            literal = value.literal or isinstance(value.obj, range)
            return [
                Static.of(item) if literal and isinstance(item, (bool, int, float)) else
                Static(item, f"{value.name}_{at}", ("item", value.origin, at))
                for at, item in enumerate(value.obj)
            ]  # fmt: skip
        self.fail(node, "only tuples, lists and ranges that are known when the function is translated can be walked over")

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.expr(node.operand)
        if isinstance(value, Static):
            if isinstance(node.op, ast.Invert) and isinstance(scalar(value.obj), bool):
                self.fail(node, "`~` of a Python bool is a number: use `not`")
            return self.known(node, _OPERATORS[type(node.op)], value)
        return self.do.unary(node.op, self.symbol(value, node.operand), node)

    def _binop(self, node: ast.BinOp) -> Any:
        return self.binary(node.op, self.expr(node.left), self.expr(node.right), node)

    def binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        """``left op right``, computed now where both are known."""
        if isinstance(left, Static) and isinstance(right, Static):
            return self.known(node, _OPERATORS.get(type(op)), left, right)
        for one, other in ((left, right), (right, left)):
            # `True & x`, where masks are combined in a loop.
            if isinstance(one, Static) and one.literal and isinstance(one.obj, bool) and isinstance(other, Sym) and other.ty == BOOL:
                if isinstance(op, ast.BitAnd if one.obj else ast.BitOr):
                    return other
        if isinstance(op, ast.Pow):
            return self.power(left, right, node)
        return self.do.binary(op, self.symbol(left, node), self.symbol(right, node), node)

    def power(self, left: Any, right: Any, node: ast.AST) -> Any:
        """``left ** right``."""
        if isinstance(left, Static) and isinstance(right, Static):
            return self.known(node, operator.pow, left, right)
        if isinstance(left, Static):
            left = Static(scalar(left.obj), left.name, left.origin, left.literal)
            return self.do.power_of(left, self.symbol(right, node), node)
        if isinstance(right, Static):
            right = Static(scalar(right.obj), right.name, right.origin, right.literal)
        return self.do.power(self.symbol(left, node), right, node)

    def known(self, node: ast.AST, function: Any, *values: Static, name: str | None = None) -> Static:
        """A function of values that are all known now, computed by Python."""
        try:
            obj = function(*(value.obj for value in values))
        except Exception as error:
            self.fail(node, f"Python says {type(error).__name__}: {error}")
        # A decision about the function's form, `window is None` or `mode == "causal"`, is no capture.
        form = isinstance(obj, bool) and not all(_is_number(value.obj) for value in values)
        if all(value.literal for value in values) or form:
            return Static.of(obj)
        base = name or "_".join(value.name for value in values if not value.literal)
        origin = ("call", getattr(function, "__name__", repr(function)), *(value.origin for value in values))
        return Static(obj, base, origin)

    def _compare(self, node: ast.Compare) -> Any:
        left, parts = self.expr(node.left), []
        for at, (op, right_node) in enumerate(zip(node.ops, node.comparators)):
            right = self.expr(right_node)
            # The middle of a chain is written twice.
            if isinstance(right, Sym) and at + 1 < len(node.ops):
                right = self.named(right, "middle")
            parts.append(self._one_comparison(op, left, right, node))
            left = right
        return self._joined(parts, node, all_of=True)

    def _one_comparison(self, op: ast.cmpop, left: Any, right: Any, node: ast.Compare) -> Any:
        if isinstance(left, Static) and isinstance(right, Static):
            return self.known(node, _OPERATORS[type(op)], left, right)
        if isinstance(op, (ast.Is, ast.IsNot)):
            return Static.of(isinstance(op, ast.IsNot))
        if isinstance(op, (ast.In, ast.NotIn)):
            value = self.named(self.symbol(left, node), "x")
            equal = [self.do.compare(ast.Eq(), value, self.symbol(item, node), node) for item in self.items(right, node)]
            found = self.do.all_of(equal, "||") if equal else bool_literal(False)
            return self.do.unary(ast.Not(), found, node) if isinstance(op, ast.NotIn) else found
        return self.do.compare(op, self.symbol(left, node), self.symbol(right, node), node)

    def _boolop(self, node: ast.BoolOp) -> Any:
        return self._joined([self.expr(value) for value in node.values], node, all_of=isinstance(node.op, ast.And))

    def _joined(self, values: list, node: ast.AST, *, all_of: bool) -> Any:
        rest: list[Any] = []
        for value in values:
            decided = self.decided(value, node)
            if decided is None:
                rest.append(value)
            elif decided != all_of:
                return Static.of(not all_of)
        if not rest:
            return Static.of(all_of)
        symbols = []
        for value in rest:
            symbol = self.symbol(value, node)
            if symbol.ty != BOOL:
                self.fail(node, "`and` and `or` take bools here, found a number: compare it first")
            symbols.append(symbol)
        return self.do.all_of(symbols, "&&" if all_of else "||")

    def _ifexp(self, node: ast.IfExp) -> Any:
        condition = self.expr(node.test)
        decided = self.decided(condition, node.test)
        if decided is not None:
            return self.expr(node.body if decided else node.orelse)
        yes, no = self.symbol(self.expr(node.body), node.body), self.symbol(self.expr(node.orelse), node.orelse)
        return self.do.select(self.symbol(condition, node.test), yes, no)

    def decided(self, condition: Any, node: ast.AST) -> bool | None:
        """A condition that is known and no capture."""
        if isinstance(condition, Static) and (condition.literal or not _is_number(condition.obj)):
            obj = condition.obj
            if not (isinstance(obj, _FORMS) or obj is None or is_array(obj) or callable(obj)):
                reason = f"`{condition.name}` is a {type(obj).__name__}: a condition is a number, a bool, a text, a tuple or None"
                self.fail(node, reason)
            try:
                return bool(condition.obj)
            except Exception as error:
                self.fail(node, f"this is no condition, Python says {type(error).__name__}: {error}")
        return None

    def _subscript(self, node: ast.Subscript) -> Any:
        value = self.expr(node.value)
        index = self.expr(node.slice)
        at = index.items if isinstance(index, Tup) else [index]
        if isinstance(value, Static) and isinstance(index, Static):
            return self.known(node, operator.getitem, value, index, name=value.name)
        if isinstance(value, Tup) and isinstance(index, Static):
            try:
                return value.items[index.obj]
            except (IndexError, TypeError) as error:
                self.fail(node, f"Python says {type(error).__name__}: {error}")
        if isinstance(value, Sym):
            self.fail(node, "a value of the GPU is a single number and cannot be indexed: only tensors that are captured can")
        if isinstance(value, Tup):
            self.fail(node, "this tuple cannot be indexed by a value of the GPU: make a tensor of it outside the function")
        indices = list(value.indices) if isinstance(value, Partial) else []
        array = value.array if isinstance(value, Partial) else value
        for item in at:
            position = self.symbol(item, node.slice)
            if position.ty != I32:
                self.fail(node.slice, f"an index is an integer, found a {'bool' if position.ty == BOOL else 'float'}: use `int(…)`")
            indices.append(self.named(position, "at"))
        if len(indices) < len(getattr(array.obj, "shape", ())):
            return Partial(array, indices)
        try:
            return self.captures.slice(array, indices, self.named)
        except NotCapturable as error:
            self.fail(node, str(error))

    def _slice(self, node: ast.Slice) -> Any:
        self.fail(node, "slices are not supported in a device function: index one element")


# What says which form a function takes, beside None and functions. Other objects may mean anything by being true.
_FORMS = (bool, int, float, str, bytes, tuple, list, dict, set)

_LIBRARIES = ("math", "torch", "numpy")

_LEFT_OUT = {
    "Lambda": "functions inside are",
    "ListComp": "comprehensions are",
    "SetComp": "comprehensions are",
    "DictComp": "comprehensions are",
    "GeneratorExp": "comprehensions are",
    "Dict": "dicts are",
    "Set": "sets are",
    "NamedExpr": "`:=` is",
    "JoinedStr": "strings are",
    "Await": "`await` is",
    "Yield": "`yield` is",
    "YieldFrom": "`yield` is",
}


def _is_number(obj: Any) -> bool:
    return isinstance(scalar(obj), (bool, int, float))
