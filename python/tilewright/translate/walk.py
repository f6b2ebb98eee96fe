"""The walk over a function's tree: expressions and names. Statements are in `statements`."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import types
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import calls, source
from .arithmetic import Arithmetic
from .captures import Capture, Captures, NotCapturable, is_array, scalar
from .statements import Statements
from .values import (
    BOOL, F32, I32, Block, ElementType, Names, Place, Static, Sym, TranslationError, Tup, Undefined, block_text,
    bool_literal, float_literal, indent, int_literal,
)  # fmt: skip

LEADING = {
    "score_mod": [("score", F32), ("b", I32), ("h", I32), ("q", I32), ("kv", I32)],
    "mask_mod": [("b", I32), ("h", I32), ("q", I32), ("kv", I32)],
}
RETURNS = {"score_mod": F32, "mask_mod": BOOL}

# Calls may nest this deep, and a function may take this many steps in all, loops written out.
_MAX_CALLS = 16
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
class Translation:
    """The text of a device function and the values of its captures, in the order of its parameters."""

    kind: str
    name: str
    source: str
    captures: list[Capture]
    # For what is only found when the text is checked.
    place: Place
    node: ast.AST


@dataclass
class Partial:
    """An array with fewer indices than dimensions: ``table[b]`` of ``table[b][h]``."""

    array: Static
    indices: list[Sym]


@dataclass
class Frame:
    """One function being walked."""

    function: types.FunctionType | None
    name: str
    place: Place
    overrides: dict[str, Any] = field(default_factory=dict)


def translate(kind: str, function: Any, overrides: dict[str, Any] | None = None) -> Translation:
    """Translates a Python function; ``overrides`` take the place of what it closes over, by name.

    Raises ``TranslationError``.
    """
    walk = Walk(kind)
    try:
        return walk.run(function, overrides or {})
    except RecursionError:
        frame = walk.frames[-1]
        reason = "its expressions nest too deep: name parts of them"
        raise TranslationError(frame.name, reason, frame.place) from None


def unwrap(function: Any) -> Any:
    """The Python function of a ``tilewright.DeviceFunction``; anything else as it is."""
    return getattr(function, "__tilewright_function__", function)


class Walk(Statements):
    """The state of one translation."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.names = Names()
        self.captures = Captures(self.names)
        self.do = Arithmetic(self)
        self.frames: list[Frame] = []
        self.block = Block()
        self.env: dict[str, Any] = {}
        self.steps = 0

    def fail(self, node: ast.AST, reason: str) -> NoReturn:
        frame = self.frames[-1]
        raise TranslationError(frame.name, reason, frame.place, node)

    # The whole function

    def run(self, function: Any, overrides: dict[str, Any]) -> Translation:
        function = unwrap(function)
        leading = LEADING[self.kind]
        shown = getattr(function, "__name__", None) or type(function).__name__
        target, arguments, keywords = self._target(function)
        if target is None:
            reason = f"a {self.kind} is a Python function, found {type(function).__name__}: use a `def` or a `lambda`"
            raise TranslationError(str(shown), reason)
        node, place = source.find(target)
        name = target.__name__ if target.__name__ != "<lambda>" else f"lambda_{self.kind}"
        self.frames.append(Frame(target, name, place, overrides))
        rust_name = Names().new(name)
        parameters = list(inspect.signature(target).parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        free = [p for p in positional[len(arguments) :] if p.name not in keywords]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        required = [p for p in parameters if p.default is p.empty and p.name not in keywords]
        required = [p for p in required if p not in positional[: len(arguments)] and p.kind is not p.VAR_POSITIONAL]
        expected = ", ".join(name for name, _ in leading)
        if (len(free) < len(leading) and not variadic) or len(required) > len(leading):
            found = ", ".join(p.name for p in free) or "none"
            reason = f"a {self.kind} takes ({expected}), found ({found}); parameters after these need defaults"
            self.fail(node, reason)
        symbols, declared = [], []
        for at, (default, ty) in enumerate(leading):
            text = self.names.new(free[at].name if at < len(free) else default)
            symbols.append(Sym(ty, text, nonneg=ty == I32))
            declared.append(f"{text}: {ty}")
        unknown = set(overrides) - {p.name for p in free[len(leading) :]} - self._free_names(target) - set(keywords)
        if unknown:
            known = sorted({p.name for p in free[len(leading) :]} | self._free_names(target) | set(keywords))
            reason = f"it captures no `{sorted(unknown)[0]}`: it has {', '.join(known) or 'no captures'}"
            raise TranslationError(name, reason)
        rest = {p.name for p in free[len(leading) :]} | set(keywords)
        keywords |= {k: Static(v, k, ("override", k)) for k, v in overrides.items() if k in rest}
        value = self._body(target, node, [*arguments, *symbols], keywords)
        result = self._result(value, node)
        body = indent(block_text(self.block, result))
        declared += [f"{capture.name}: {capture.rust}" for capture in self.captures.listed]
        text = f"fn {rust_name}({', '.join(declared)}) -> {RETURNS[self.kind]} {{\n{body}\n}}\n"
        return Translation(self.kind, name, text, self.captures.listed, place, node)

    def _free_names(self, function: types.FunctionType) -> set[str]:
        return {*function.__code__.co_freevars, *(n for n in function.__code__.co_names if n in function.__globals__)}

    def _target(self, function: Any) -> tuple[types.FunctionType | None, list, dict]:
        """The plain function behind a partial, a bound method or a callable object, and the arguments it brings."""
        function = unwrap(function)
        if isinstance(function, functools.partial):
            target, arguments, keywords = self._target(function.func)
            more = [Static(v, f"argument_{i}", ("partial", id(function), i)) for i, v in enumerate(function.args)]
            keywords |= {k: Static(v, k, ("partial", id(function), k)) for k, v in function.keywords.items()}
            return target, [*arguments, *more], keywords
        if isinstance(function, types.MethodType):
            target, arguments, keywords = self._target(function.__func__)
            owner = function.__self__
            return target, [Static(owner, "self", ("self", id(owner))), *arguments], keywords
        if isinstance(function, types.FunctionType):
            return function, [], {}
        call = getattr(type(function), "__call__", None)
        if isinstance(call, types.FunctionType) and not isinstance(function, type):
            return self._target(types.MethodType(call, function))
        return None, [], {}

    def _result(self, value: Any, node: ast.AST) -> Sym:
        result = self.symbol(value, node)
        if self.kind == "mask_mod" and result.ty != BOOL:
            self.fail(node, "a mask_mod returns a bool, found a number: compare it, with `!= 0` for example")
        if self.kind == "score_mod" and result.ty == BOOL:
            self.fail(node, "a score_mod returns a score, found a bool: choose one with `torch.where(keep, score, -math.inf)`")
        return self.do.convert(result, RETURNS[self.kind])

    def _body(self, target: types.FunctionType, node: Any, arguments: list, keywords: dict) -> Any:
        """The value of a function's body for these arguments, in the frame on top."""
        if isinstance(node, ast.AsyncFunctionDef):
            self.fail(node, "`async` functions are not supported: use `def`")
        signature = inspect.signature(target)
        try:
            bound = signature.bind(*arguments, **keywords)
        except TypeError as error:
            self.fail(node, f"its arguments do not fit: {error}")
        env: dict[str, Any] = {}
        for parameter in signature.parameters.values():
            name = parameter.name
            if name in bound.arguments:
                value = bound.arguments[name]
                if parameter.kind is parameter.VAR_POSITIONAL:
                    value = Tup(list(value))
                elif parameter.kind is parameter.VAR_KEYWORD:
                    self.fail(node, "`**` parameters are not supported: name each")
            elif parameter.kind is parameter.VAR_POSITIONAL:
                value = Tup([])
            elif parameter.kind is parameter.VAR_KEYWORD:
                continue
            else:
                value = Static(parameter.default, name, ("default", id(target), name))
            env[name] = self.named(value, name) if isinstance(value, Sym) else value
        outer, self.env = self.env, env
        if isinstance(node, ast.Lambda):
            value = self.expr(node.body)
        else:
            value = self.statements(node.body)
            if value is None:
                self.fail(node, "it ends without a `return` on some path: return a value on each")
        self.env = outer
        return value

    # Values

    def named(self, value: Sym, name: str) -> Sym:
        """The value under a name, so that it can be written twice."""
        if value.is_atom or value.plain is not None:
            return value
        local = self.names.new(name)
        self.block.lets.append(f"let {local} = {value.text};")
        return Sym(value.ty, local, nonneg=value.nonneg)

    def symbol(self, value: Any, node: ast.AST) -> Sym:
        """The value as a number or bool on the GPU: a literal is written down, anything else known now is captured."""
        if isinstance(value, Sym):
            return value
        if isinstance(value, Undefined):
            self.fail(node, value.reason)
        if isinstance(value, Partial):
            dims, found = len(value.array.obj.shape), len(value.indices)
            self.fail(node, f"`{value.array.name}` has {dims} dimensions, {found} indexed: index all")
        if not isinstance(value, Static):
            self.fail(node, "this is no number or bool: a device function has scalars only")
        number = scalar(value.obj)
        if value.literal and isinstance(number, bool):
            return bool_literal(number)
        if value.literal and isinstance(number, int):
            if not -(2**31) <= number < 2**31:
                self.fail(node, f"{number} does not fit an i32: write it as a float")
            return int_literal(number)
        if value.literal and isinstance(number, float):
            try:
                return float_literal(number)
            except OverflowError:
                self.fail(node, f"{number} does not fit an f32: its largest number is 3.4028235e38")
        try:
            return self.captures.scalar(value)
        except NotCapturable as error:
            self.fail(node, str(error) or _not_a_number(value))

    # Expressions

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

    # Calls

    def _call(self, node: ast.Call) -> Any:
        arguments: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                arguments.extend(self.items(self.expr(argument.value), argument))
            else:
                arguments.append(self.expr(argument))
        if any(keyword.arg is None for keyword in node.keywords):
            self.fail(node, "`**` arguments are not supported: name each")
        keywords = {keyword.arg: self.expr(keyword.value) for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute):
            owner = self.expr(node.func.value)
            if not isinstance(owner, Static):
                return self._method(node, node.func.attr, owner, arguments, keywords)
        function = self.expr(node.func)
        if not isinstance(function, Static):
            self.fail(node.func, "this is no function: call functions of torch and math, and functions of your own")
        callee, everything = unwrap(function.obj), [*arguments, *keywords.values()]
        if all(isinstance(value, Static) for value in everything) and calls.is_pure(callee):
            named = dict(zip(keywords, range(len(arguments), len(everything))))

            def call(*values):
                return callee(*values[: len(arguments)], **{key: values[at] for key, at in named.items()})

            call.__name__ = getattr(callee, "__name__", "call")
            first = [value.name for value in everything if not value.literal] or [function.name]
            result = self.known(node, call, *everything, name=f"{call.__name__}_{first[0]}")
            owner = getattr(callee, "__self__", None)
            if is_array(owner):
                # A method of a captured tensor is known by the tensor too.
                result = Static(result.obj, f"{function.name}_{result.name}", (function.origin, result.origin))
            return result
        handler = calls.handler_of(callee)
        if handler is not None:
            return handler(self, node, arguments, keywords)
        target, more, more_keywords = self._target(callee)
        if target is None:
            self.fail(node, f"`{ast.unparse(node.func)}` cannot be called in a device function: it may call {calls.SUPPORTED}")
        return self._inline(node, target, [*more, *arguments], {**more_keywords, **keywords})

    def _method(self, node: ast.Call, name: str, owner: Any, arguments: list, keywords: dict) -> Any:
        owner = self.symbol(owner, node)
        handler = calls.METHODS.get(name) or calls.BY_NAME.get(name)
        if handler is None:
            self.fail(node, f"`.{name}()` of a value of the GPU is not supported: it may call {calls.SUPPORTED}")
        return handler(self, node, [owner, *arguments], keywords)

    def _inline(self, node: ast.Call, target: types.FunctionType, arguments: list, keywords: dict) -> Any:
        if len(self.frames) > _MAX_CALLS:
            self.fail(node, f"calls nest more than {_MAX_CALLS} deep: does `{target.__name__}` call itself?")
        tree, place = source.find(target)
        self.frames.append(Frame(target, f"{self.frames[-1].name} → {target.__name__}", place))
        value = self._body(target, tree, arguments, keywords)
        self.frames.pop()
        return value


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


def _not_a_number(value: Static) -> str:
    if is_array(value.obj):
        shape = tuple(value.obj.shape)
        return f"`{value.name}` is a tensor of shape {shape}: index it, as in `{value.name}[q]`"
    if value.literal:
        return f"{value.obj!r} is no number or bool: a device function has scalars only"
    return f"`{value.name}` is a {type(value.obj).__name__}: captured are ints, floats, bools, and tensors that are indexed"
