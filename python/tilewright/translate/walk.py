"""The walk over a function's tree: parameters, values and calls. Expressions and statements are beside it."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import calls, source
from .arithmetic import Arithmetic
from .captures import Capture, Captures, NotCapturable, is_array, scalar
from .expressions import Expressions, Partial
from .statements import Statements
from .values import (
    BOOL, F32, I32, Block, Names, Place, Static, Sym, TranslationError, Tup, Undefined, block_text, bool_literal,
    float_literal, indent, int_literal,
)  # fmt: skip

LEADING = {
    "score_mod": [("score", F32), ("b", I32), ("h", I32), ("q", I32), ("kv", I32)],
    "mask_mod": [("b", I32), ("h", I32), ("q", I32), ("kv", I32)],
}
RETURNS = {"score_mod": F32, "mask_mod": BOOL}

# Calls may nest this deep.
_MAX_CALLS = 16


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


class Walk(Expressions, Statements):
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


def _not_a_number(value: Static) -> str:
    if is_array(value.obj):
        shape = tuple(value.obj.shape)
        return f"`{value.name}` is a tensor of shape {shape}: index it, as in `{value.name}[q]`"
    if value.literal:
        return f"{value.obj!r} is no number or bool: a device function has scalars only"
    return f"`{value.name}` is a {type(value.obj).__name__}: captured are ints, floats, bools, and tensors that are indexed"
