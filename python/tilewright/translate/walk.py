"""The walk over a function's tree: parameters, values and calls. Expressions and statements are beside it."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from . import calls, libraries, source
from .arithmetic import Arithmetic
from .arrays import NotCapturable, is_array, scalar
from .captures import Capture, Captures
from .expressions import Expressions, Partial
from .statements import Statements
from .values import (
    ATOM, BOOL, F32, I32, POSITIONS_MAX, Block, Keywords, Names, Place, Static, Sym, TranslationError, Tup, Undefined,
    another, block_text, bool_literal, float_literal, indent, int_literal, shown,
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
    # The variables of the caller.
    outer: dict[str, Any] = field(default_factory=dict)
    # In a formula: the call that it stands for.
    at: ast.AST | None = None


def translate(kind: str, function: Any, overrides: dict[str, Any] | None = None) -> Translation:
    """Translates a Python function; ``overrides`` take the place of what it closes over, by name.

    Raises ``TranslationError``.
    """
    walk = Walk(kind)
    try:
        return walk.run(function, overrides or {})
    except TranslationError:
        raise
    except RecursionError:
        raise walk.error(None, "its expressions nest too deep: name parts of them") from None
    except Exception as error:
        # Whatever it captures may run code of its own: properties, comparisons, conversions.
        raise walk.error(walk.at, f"Python says {type(error).__name__}: {error}") from error


def unwrap(function: Any) -> Any:
    """The Python function of a ``tilewright.DeviceFunction``, or of ``functools.cache``; anything else as it is."""
    try:
        found = getattr(function, "__tilewright_function__", function)
    except Exception:
        # An object whose `__getattr__` raises what it likes.
        return function
    if isinstance(found, staticmethod) or type(found).__name__ == "_lru_cache_wrapper":
        return found.__wrapped__
    return found


def signature_of(function: types.FunctionType) -> inspect.Signature:
    """The parameters that the code has, whatever a decorator says of them."""
    code, defaults = function.__code__, function.__defaults__
    plain = types.FunctionType(code, function.__globals__, function.__name__, defaults, function.__closure__)
    plain.__kwdefaults__ = function.__kwdefaults__
    return inspect.signature(plain)


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
        self.items_made = 0
        # What is being looked at.
        self.at: ast.AST | None = None

    def fail(self, node: ast.AST, reason: str) -> NoReturn:
        raise self.error(node, reason)

    def error(self, node: ast.AST | None, reason: str) -> TranslationError:
        """The error at a place of the function on top."""
        if not self.frames:
            return TranslationError("the function", reason)
        frame = self.frames[-1]
        return TranslationError(frame.name, reason, frame.place, frame.at or node)

    # The whole function

    def run(self, function: Any, overrides: dict[str, Any]) -> Translation:
        function = unwrap(function)
        leading = LEADING[self.kind]
        target, arguments, keywords = self._target(function)
        if target is None:
            reason = f"a {self.kind} is a Python function, found {type(function).__name__}: use a `def` or a `lambda`"
            raise TranslationError(_name_of(function), reason)
        reason = libraries.refusal(target, calls.SUPPORTED)
        if reason is not None:
            raise TranslationError(_name_of(function), reason)
        node, place = source.find(target)
        name = target.__name__ if target.__name__ != "<lambda>" else f"lambda_{self.kind}"
        self.frames.append(Frame(target, name, place, overrides))
        rust_name = Names().new(name)
        parameters = list(signature_of(target).parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        free = [p for p in positional[len(arguments) :] if p.name not in keywords]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        required = [p for p in parameters if p.default is p.empty and p.name not in keywords]
        required = [p for p in required if p not in positional[: len(arguments)]]
        required = [p for p in required if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        expected = ", ".join(name for name, _ in leading)
        if (len(free) < len(leading) and not variadic) or len(required) > len(leading):
            found = ", ".join(p.name for p in free) or "none"
            reason = f"a {self.kind} takes ({expected}), found ({found}); parameters after these need defaults"
            self.fail(node, reason)
        symbols, declared = [], []
        for at, (default, ty) in enumerate(leading):
            text = self.names.new(free[at].name if at < len(free) else default)
            symbols.append(Sym(ty, text, nonneg=ty == I32, most=POSITIONS_MAX))
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
        signature = signature_of(target)
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
                    value = Keywords(value)
            elif parameter.kind is parameter.VAR_POSITIONAL:
                value = Tup([])
            elif parameter.kind is parameter.VAR_KEYWORD:
                value = Keywords({})
            else:
                value = Static(parameter.default, name, ("default", id(target), name))
            env[name] = self.named(value, name) if isinstance(value, Sym) else value
        outer, self.env = self.env, env
        self.frames[-1].outer = outer
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
        return replace(value, text=local, binds=ATOM)

    def weakened(self, value: Any) -> Any:
        """The value as a Python number."""
        return another(value, weak=True) if isinstance(value, Sym) else value

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
        number, weak = scalar(value.obj), not is_array(value.obj)
        if value.literal and isinstance(number, bool):
            return replace(bool_literal(number), weak=weak)
        if value.literal and isinstance(number, int):
            if not -(2**31) <= number < 2**31:
                self.fail(node, f"{shown(number)} does not fit an i32: write it as a float")
            return replace(int_literal(number), weak=weak)
        if value.literal and isinstance(number, float):
            try:
                return replace(float_literal(number), weak=weak)
            except OverflowError:
                self.fail(node, f"{number} does not fit an f32: its largest number is 3.4028235e38")
        try:
            return self.captures.scalar(value)
        except NotCapturable as error:
            self.fail(node, str(error))

    # Calls

    def _call(self, node: ast.Call) -> Any:
        arguments: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                arguments.extend(self.items(self.expr(argument.value), argument))
            else:
                arguments.append(self.expr(argument))
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.expr(keyword.value)
            for name, item in ([(keyword.arg, value)] if keyword.arg is not None else self._named_items(value, node)):
                if name in keywords:
                    self.fail(node, f"`{name}` is given twice")
                keywords[name] = item
        if isinstance(node.func, ast.Attribute):
            owner = self.expr(node.func.value)
            known = all(isinstance(value, Static) for value in (*arguments, *keywords.values()))
            # What is computed with a captured tensor and a value of the GPU is one of the GPU.
            if not isinstance(owner, Static) or (is_array(owner.obj) and not known):
                return self._method(node, node.func.attr, owner, arguments, keywords)
            function = self.attribute(node.func, owner)
        else:
            function = self.expr(node.func)
        if not isinstance(function, Static):
            self.fail(node.func, "this is no function: call functions of torch and math, and functions of your own")
        callee, everything = unwrap(function.obj), [*arguments, *keywords.values()]
        if all(isinstance(value, Static) for value in everything) and calls.is_pure(callee, keywords):
            named = dict(zip(keywords, range(len(arguments), len(everything))))

            def call(*values):
                return callee(*values[: len(arguments)], **{key: values[at] for key, at in named.items()})

            call.__name__ = getattr(callee, "__name__", "call")
            first = [value.name for value in everything if not value.literal] or [function.name]
            self.affordable(node, callee, *everything)
            result = self.known(node, call, *everything, name=f"{call.__name__}_{first[0]}")
            result.origin = (result.origin, tuple(keywords))
            owner = getattr(callee, "__self__", None)
            if is_array(owner):
                # A method of a captured tensor is known by the tensor too.
                result = Static(result.obj, f"{function.name}_{result.name}", (function.origin, result.origin))
            return result
        if callee is isinstance and not keywords and len(arguments) == 2 and isinstance(arguments[0], Sym):
            return self._is_instance(node, *arguments)
        operation = calls.operation_of(callee)
        if operation is not None:
            return operation(self, node, arguments, keywords)
        target, more, more_keywords = self._target(callee)
        if target is None:
            self.fail(node, f"`{ast.unparse(node.func)}` cannot be called in a device function: it may call {calls.SUPPORTED}")
        return self._inline(node, target, [*more, *arguments], {**more_keywords, **keywords})

    def _is_instance(self, node: ast.Call, value: Sym, types: Any) -> Static:
        """``isinstance(score, torch.Tensor)``: a value of the GPU stands for a tensor, or for a number of Python."""
        kind = {F32: float, I32: int, BOOL: bool}[value.ty] if value.weak else calls.tensor_type()
        if isinstance(types, Tup) and all(isinstance(item, Static) for item in types.items):
            types = Static.of(tuple(item.obj for item in types.items))
        if not isinstance(types, Static) or kind is None:
            self.fail(node, "`isinstance` of a value of the GPU takes types that are known, and PyTorch: leave the question out")
        return self.known(node, issubclass, Static.of(kind), Static.of(types.obj))

    def _method(self, node: ast.Call, name: str, owner: Any, arguments: list, keywords: dict) -> Any:
        owner = self.symbol(owner, node)
        operation = calls.method_of(name)
        if operation is None:
            self.fail(node, f"`.{name}()` of a value of the GPU is not supported: it may call {calls.SUPPORTED}")
        return operation(self, node, [owner, *arguments], keywords)

    def _named_items(self, value: Any, node: ast.AST) -> list[tuple[str, Any]]:
        """What ``**value`` passes on."""
        if isinstance(value, Keywords):
            return list(value.items.items())
        if isinstance(value, Static) and isinstance(value.obj, dict) and all(isinstance(key, str) for key in value.obj):
            return [(key, Static(item, key, ("item", value.origin, key))) for key, item in value.obj.items()]
        self.fail(node, "only the function's own `**` parameter and dicts that are captured can be passed on with `**`")

    def _inline(self, node: ast.Call, target: types.FunctionType, arguments: list, keywords: dict) -> Any:
        if len(self.frames) > _MAX_CALLS:
            self.fail(node, f"calls nest more than {_MAX_CALLS} deep: does `{target.__name__}` call itself?")
        reason = libraries.refusal(target, calls.SUPPORTED)
        if reason is not None:
            self.fail(node, reason)
        tree, place = source.find(target)
        self.frames.append(Frame(target, f"{self.frames[-1].name} → {target.__name__}", place))
        value = self._body(target, tree, arguments, keywords)
        self.frames.pop()
        return value


def _name_of(function: Any) -> str:
    """What an object that is no function is called in a message."""
    try:
        name = function.__name__
    except Exception:
        name = None
    return name if isinstance(name, str) else type(function).__name__
