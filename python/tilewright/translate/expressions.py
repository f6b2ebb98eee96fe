"""Expressions: names, operators, choices and indices. What is known at translation is computed by Python."""

from __future__ import annotations

import ast
import functools
import operator
import types
from dataclasses import dataclass, replace
from typing import Any, Callable

from . import calls, cost
from .arrays import NotCapturable, is_array, scalar
from .membership import contains
from .values import BOOL, I32, ElementType, Static, Sym, Tup, Undefined

# A function may take this many steps in all, with its loops and calls written out.
MAX_STEPS = 20_000

_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not, ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b, ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
    ast.Invert: operator.invert, ast.MatMult: operator.matmul,
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
        self.step(node)
        self.at = node
        visit = getattr(self, f"_{type(node).__name__.lower()}", None)
        if visit is None:
            what = _LEFT_OUT.get(type(node).__name__, "this expression is")
            reason = f"{what} not supported in a device function: use numbers, comparisons, `a if c else b` and functions of torch or math"
            self.fail(node, reason)
        return visit(node)

    def step(self, node: ast.AST) -> None:
        """Counts a step, so that a translation ends."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            self.fail(node, f"it takes more than {MAX_STEPS} steps with its loops and calls written out: make it smaller")

    def formula(self, body: list[ast.stmt], names: dict[str, Any], at: ast.AST) -> Any:
        """The value of a body of statements over `names`; errors point at the call that stands for it."""
        outer, self.env = self.env, names
        self.frames.append(replace(self.frames[-1], function=None, overrides={}, at=at))
        value = self.statements(body)
        self.frames.pop()
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
        if function is None:
            known = calls.formula_names()[name]
            return Static.of(known) if isinstance(known, float) else Static(known, name, ("formula", name))
        if name in (*function.__code__.co_varnames, *function.__code__.co_cellvars):
            self.fail(node, f"`{name}` is read before it is assigned here: give it a value first")
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
        return self.attribute(node, self.expr(node.value))

    def attribute(self, node: ast.Attribute, value: Any) -> Any:
        """An attribute of a value."""
        if isinstance(value, Static):
            try:
                obj = getattr(value.obj, self._in_code(node.attr))
            except AttributeError as error:
                self.fail(node, f"{error}")
            except Exception as error:
                self.fail(node, f"`.{node.attr}` cannot be read, Python says {type(error).__name__}: {error}")
            constant = isinstance(value.obj, types.ModuleType) and value.obj.__name__.partition(".")[0] in _LIBRARIES
            of_type = is_array(value.obj) or type(value.obj).__name__ in ("finfo", "iinfo")
            literal = (constant or (of_type and value.literal)) and isinstance(obj, (bool, int, float))
            return Static(obj, node.attr, ("attribute", value.origin, node.attr), literal)
        if isinstance(value, Sym) and node.attr == "dtype":
            dtype = None if value.weak else calls.dtype_of(value.ty)
            return ElementType(value.ty) if dtype is None else Static(dtype, "dtype", ("dtype", value.ty), True)
        if isinstance(value, Sym) and node.attr == "device":
            return Static.of(None)
        self.fail(node, f"`.{node.attr}` of a value of the GPU is not supported: positions and scores are single numbers")

    def _in_code(self, name: str) -> str:
        """The name of an attribute in the code: ``self.__slope`` of a class ``Bias`` is ``_Bias__slope`` there."""
        function = self.frames[-1].function
        names = () if function is None else function.__code__.co_names
        if name in names or not name.startswith("__"):
            return name
        return next((known for known in names if known.startswith("_") and known.endswith(name)), name)

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
            if len(value.obj) > MAX_STEPS:
                self.fail(node, f"`{value.name}` has {len(value.obj)} items: at most {MAX_STEPS} are walked over")
            literal = value.literal or isinstance(value.obj, range)
            return [
                Static.of(item) if literal and isinstance(item, (bool, int, float)) else
                Static(item, f"{value.name}_{at}", ("item", value.origin, at))
                for at, item in enumerate(value.obj)
            ]  # fmt: skip
        self.fail(node, "only tuples, lists and ranges that are known when the function is translated can be walked over")

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return self.condition(node)
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
            if isinstance(op, ast.Mod) and isinstance(left.obj, (str, bytes)):
                self.fail(node, "texts are compared here, and none is made: make it outside of the function")
            return self.known(node, _OPERATORS[type(op)], left, right)
        for one, other in ((left, right), (right, left)):
            # `True & x`, where masks are combined in a loop.
            if _is_literal_bool(one) and isinstance(other, Sym) and other.ty == BOOL:
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
        self.affordable(node, function, *values)
        try:
            obj = function(*(value.obj for value in values))
        except Exception as error:
            self.fail(node, f"Python says {type(error).__name__}: {error}")
        # A decision about the function's form, `window is None` or `mode == "causal"`, is no capture.
        form = isinstance(obj, bool) and not all(_is_number(value.obj) for value in values)
        if all(value.literal for value in values) or form:
            return Static.of(obj)
        base = name or "_".join(value.name for value in values if not value.literal)
        origin = ("call", getattr(function, "__name__", "call"), *(value.origin for value in values))
        return Static(obj, base, origin)

    def affordable(self, node: ast.AST, function: Any, *values: Static) -> None:
        """Fails for what Python would compute for ever, or would need all memory for."""
        known = [scalar(value.obj) for value in values]
        if cost.bits(function, known) > cost.MAX_BITS:
            self.fail(node, f"this integer has more than {cost.MAX_BITS} bits: write it as a float")
        self.items_made += cost.items(function, known)
        if self.items_made > cost.MOST_ITEMS:
            reason = f"at most {cost.MOST_ITEMS} items are computed at translation: make a tensor outside of the function"
            self.fail(node, reason)

    def _compare(self, node: ast.Compare) -> Any:
        left, result = self.expr(node.left), None
        for at, (op, right_node) in enumerate(zip(node.ops, node.comparators)):
            right = self.expr(right_node)
            # The middle of a chain is written twice.
            if isinstance(right, Sym) and at + 1 < len(node.ops):
                right = self.named(right, "middle")
            part = self._one_comparison(op, left, right, node)
            result = part if at == 0 else self._joined(result, functools.partial(_itself, part), node, all_of=True)
            left = right
        return result

    def _one_comparison(self, op: ast.cmpop, left: Any, right: Any, node: ast.Compare) -> Any:
        if isinstance(left, Static) and isinstance(right, Static):
            return self.known(node, _OPERATORS[type(op)], left, right)
        if isinstance(op, (ast.In, ast.NotIn)) and _is_form(left) and isinstance(right, Tup) and all(map(_is_form, right.items)):
            # `score.dtype in (torch.float16, torch.bfloat16)`.
            return self.known(node, _OPERATORS[type(op)], left, Static.of(tuple(item.obj for item in right.items)))
        if isinstance(op, (ast.Is, ast.IsNot)):
            known = [side for side in (left, right) if isinstance(side, Static)]
            weak = any(isinstance(side, Sym) and side.weak for side in (left, right))
            if not known or (weak and known[0].obj is not None):
                self.fail(node, "`is` is for None here: compare with `==`")
            return Static.of(isinstance(op, ast.IsNot))
        if isinstance(op, (ast.In, ast.NotIn)):
            found = contains(self, node, left, right)
            return self.do.unary(ast.Not(), found, node) if isinstance(op, ast.NotIn) else found
        return self.do.compare(op, self.symbol(left, node), self.symbol(right, node), node)

    def _boolop(self, node: ast.BoolOp) -> Any:
        return self._all_joined(node, self.expr)

    def _all_joined(self, node: ast.BoolOp, visit: Callable[[ast.expr], Any]) -> Any:
        """``and`` or ``or`` of what ``visit`` makes of each operand."""
        value = visit(node.values[0])
        for following in node.values[1:]:
            value = self._joined(value, functools.partial(visit, following), node, all_of=isinstance(node.op, ast.And))
        return value

    def _joined(self, left: Any, right_of: Callable[[], Any], node: ast.AST, *, all_of: bool) -> Any:
        """``left and right`` or ``left or right``: one of the two values. ``right_of`` is not asked where `left` decides."""
        decided = self.decided(left, node)
        if decided is not None:
            return right_of() if decided == all_of else left
        right = right_of()
        if isinstance(left, Static) and isinstance(right, Static):
            return self.known(node, _and if all_of else _or, left, right)
        if isinstance(left, Sym) and left.ty == BOOL and _is_literal_bool(right):
            return left if right.obj == all_of else right
        left, right = self.named(self.symbol(left, node), "left"), self.symbol(right, node)
        if left.ty == right.ty == BOOL:
            both = self.do.all_of([left, right], "&&" if all_of else "||")
            return replace(both, tensors=left.tensors | right.tensors)
        return self.do.select(left, *((right, left) if all_of else (left, right)))

    def condition(self, node: ast.expr) -> Any:
        """Whether an expression is true: of `and`, `or` and `not` only that, not which value they give."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            value = self.condition(node.operand)
            decided = self.decided(value, node)
            if decided is not None:
                return Static.of(not decided)
            return self.known(node, operator.not_, value) if isinstance(value, Static) else self.do.unary(node.op, value, node)
        if not isinstance(node, ast.BoolOp):
            value = self.expr(node)
            # A capture stays one, for its value may be bound anew.
            return value if isinstance(value, Static) else self.do.to_bool(self.symbol(value, node))
        return self._all_joined(node, self.condition)

    def _ifexp(self, node: ast.IfExp) -> Any:
        condition = self.condition(node.test)
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
            except Exception as error:
                self.fail(node, f"Python says {type(error).__name__}: {error}")
        if isinstance(value, Sym):
            self.fail(node, "a value of the GPU is a single number and cannot be indexed: only tensors that are captured can")
        if isinstance(value, Tup):
            self.fail(node, "this tuple cannot be indexed by a value of the GPU: make a tensor of it outside the function")
        indices = list(value.indices) if isinstance(value, Partial) else []
        array = value.array if isinstance(value, Partial) else value
        if not isinstance(array, Static):
            self.fail(node, "only tensors, arrays and lists that are captured can be indexed")
        for item in at:
            position = self.symbol(item, node.slice)
            if position.ty != I32:
                self.fail(node.slice, f"an index is an integer, found a {'bool' if position.ty == BOOL else 'float'}: use `int(…)`")
            indices.append(self.named(position, "at"))
        if is_array(array.obj) and len(indices) < len(array.obj.shape):
            return Partial(array, indices)
        try:
            return self.captures.slice(array, indices, self.named)
        except NotCapturable as error:
            self.fail(node, str(error))

    def _slice(self, node: ast.Slice) -> Any:
        ends = [Static.of(None) if end is None else self.expr(end) for end in (node.lower, node.upper, node.step)]
        if not all(isinstance(end, Static) for end in ends):
            self.fail(node, "slices by values of the GPU are not supported in a device function: index one element")
        return self.known(node, slice, *ends)


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


def _itself(value: Any) -> Any:
    return value


def _and(left: Any, right: Any) -> Any:
    return left and right


def _or(left: Any, right: Any) -> Any:
    return left or right


def _is_literal_bool(value: Any) -> bool:
    return isinstance(value, Static) and value.literal and isinstance(value.obj, bool)


def _is_form(value: Any) -> bool:
    """Whether it is known and no number: a type, a text, None."""
    return isinstance(value, Static) and not _is_number(value.obj) and not is_array(value.obj)


def _is_number(obj: Any) -> bool:
    return isinstance(scalar(obj), (bool, int, float))
