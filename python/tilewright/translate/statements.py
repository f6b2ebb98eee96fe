"""Statements: each path to a `return` is followed, and what an `if` assigns becomes one value."""

from __future__ import annotations

import ast
import importlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Iterator

from .arrays import is_array
from .values import Block, Keywords, Static, Sym, Tup, Undefined, choice

_ADVICE = {
    "While": "`while` loops are not supported: compute the value in closed form from q, kv and what is captured",
    "Try": "`try` is not supported: nothing raises on the GPU",
    "With": "`with` is not supported in a device function",
    "Raise": "`raise` is not supported: nothing raises on the GPU, return a value",
    "Delete": "`del` is not supported in a device function",
    "Global": "`global` is not supported: a device function only reads what it captures",
    "Nonlocal": "`nonlocal` is not supported: a device function only reads what it captures",
    "FunctionDef": "functions inside are not supported: define it outside and call it",
    "ClassDef": "classes are not supported in a device function",
    "Match": "`match` is not supported: use `if` and `elif`",
    "Break": "`break` is not supported: loops are written out as a whole",
    "Continue": "`continue` is not supported: use `if`",
}


@dataclass
class _Bind:
    """The variable of a loop takes a value: what a written-out loop has before each round."""

    target: ast.expr
    value: Any


class Statements:
    """The part of the walk that knows statements."""

    def statements(self, statements: list) -> Any:
        """The value returned, or None when the end is reached without a `return`."""
        for at, statement in enumerate(statements):
            if isinstance(statement, _Bind):
                self.step(statement.target)
                self._assign(statement.target, statement.value)
            elif isinstance(statement, ast.Return):
                if statement.value is None:
                    self.fail(statement, "`return` needs a value here")
                return self.expr(statement.value)
            elif isinstance(statement, ast.If):
                decided = self.decided(condition := self.condition(statement.test), statement.test)
                if decided is not None:
                    return self.statements([*(statement.body if decided else statement.orelse), *statements[at + 1 :]])
                symbol = self.do.to_bool(self.symbol(condition, statement.test))
                if _returns([statement]):
                    return self._choose(statement, symbol, statements[at + 1 :])
                self._merge(statement, symbol)
            elif isinstance(statement, ast.For):
                return self.statements([*self._rounds(statement), *statements[at + 1 :]])
            else:
                self._simple(statement)
        return None

    def _simple(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign):
            value = self.expr(statement.value)
            for target in statement.targets:
                self._assign(target, value)
        elif isinstance(statement, ast.AnnAssign):
            if statement.value is not None:
                self._assign(statement.target, self.expr(statement.value))
        elif isinstance(statement, ast.AugAssign):
            if not isinstance(statement.target, ast.Name):
                self.fail(statement.target, "only variables can be assigned to")
            name = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement.target)
            old = self.expr(name)
            value = self.binary(statement.op, old, self.expr(statement.value), statement)
            self._changes(statement, old, value)
            self._assign(statement.target, value)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            pass  # A docstring, or `...`.
        elif isinstance(statement, ast.Expr):
            self.fail(statement, "this statement has no effect: a device function only returns a value")
        elif isinstance(statement, ast.Assert):
            if self.decided(self.expr(statement.test), statement) is not True:
                self.fail(statement, "`assert` is not supported on values of the GPU: leave it out")
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            self._import(statement)
        elif not isinstance(statement, ast.Pass):
            name = type(statement).__name__
            self.fail(statement, _ADVICE.get(name, f"`{name.lower()}` is not supported in a device function"))

    def _changes(self, statement: ast.AugAssign, old: Any, new: Any) -> None:
        """Python changes a tensor in place: under its other names it is another one now."""
        name = statement.target.id
        instead = f"write `{name} = {name} …` with the operator, which makes a new one"
        if isinstance(old, Static) and (is_array(old.obj) or isinstance(old.obj, (list, dict, set))):
            self.fail(statement, f"this changes `{old.name}`, which is captured, in place: {instead}")
        if not isinstance(old, Sym) or old.weak:
            return
        if isinstance(new, Sym) and new.ty != old.ty and not (new.weak and old.weak):
            order = ["bool", "i32", "f32"]
            if order.index(new.ty) > order.index(old.ty):
                self.fail(statement, f"`{name}` is a tensor of {old.ty}, which holds no {new.ty}: {instead}")
        for env in (self.env, *(frame.outer for frame in self.frames)):
            for other, value in env.items():
                if _may_be(value, old) and (env is not self.env or other != name):
                    env[other] = Undefined(f"`{other}` was changed in place through `{name}`: {instead}")

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        for alias in statement.names:
            base = statement.module if isinstance(statement, ast.ImportFrom) else alias.name
            if (base or "").partition(".")[0] not in ("math", "torch", "numpy"):
                self.fail(statement, "only math, torch and numpy can be imported in a device function: import it outside")
            try:
                module = importlib.import_module(base)
                if isinstance(statement, ast.ImportFrom):
                    obj, name = _member(module, alias.name), alias.asname or alias.name
                else:
                    name = alias.asname or base.partition(".")[0]
                    obj = module if alias.asname else importlib.import_module(name)
            except Exception as error:
                self.fail(statement, f"it cannot be imported, Python says {type(error).__name__}: {error}")
            self.env[name] = Static(obj, name, ("import", base, name), isinstance(obj, (int, float)))

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            items = self.items(value, target)
            if len(items) != len(target.elts):
                self.fail(target, f"{len(target.elts)} variables are assigned {len(items)} values")
            for one, item in zip(target.elts, items):
                self._assign(one, item)
        elif isinstance(target, ast.Name):
            self.env[target.id] = self.named(value, target.id) if isinstance(value, Sym) else value
        else:
            self.fail(target, "only variables can be assigned to: a device function changes nothing outside")

    def _rounds(self, loop: ast.For) -> list:
        """A loop over what is known, written out."""
        if loop.orelse:
            self.fail(loop, "`else` of a loop is not supported: write it after the loop")
        value = self.expr(loop.iter)
        if not isinstance(value, (Static, Tup)):
            self.fail(loop, "a loop goes over a tuple, a list or a `range` that is known when the function is translated")
        rounds: list = []
        for item in self.items(value, loop.iter):
            rounds += [_Bind(loop.target, item), *loop.body]
        return rounds

    @contextmanager
    def _branch(self) -> Iterator[tuple[Block, dict]]:
        """A block of its own, with variables of its own."""
        outer_block, outer_env = self.block, self.env
        self.block, self.env = Block(), dict(outer_env)
        yield self.block, self.env
        self.block, self.env = outer_block, outer_env

    def _choose(self, statement: ast.If, condition: Sym, rest: list) -> Any:
        """An `if` with a `return` in it: what follows it is the end of each branch that goes on."""
        ends = []
        for body in (statement.body, statement.orelse):
            with self._branch() as (block, _):
                value = self.statements([*body, *rest])
                if value is None:
                    return None
                ends.append((block, self.symbol(value, statement)))
        (yes_block, yes), (no_block, no) = ends
        tensors = yes.tensors | no.tensors
        yes, no = self.do.unify(yes, no)
        return replace(choice(condition, yes, no, yes_block, no_block), tensors=tensors)

    def _merge(self, statement: ast.If, condition: Sym) -> None:
        """An `if` without a `return`: each variable it assigns becomes a choice."""
        with self._branch() as (yes_block, yes_env):
            self.statements(statement.body)
        with self._branch() as (no_block, no_env):
            self.statements(statement.orelse)
        changed = [
            name for name in dict.fromkeys([*yes_env, *no_env])
            if yes_env.get(name) is not self.env.get(name) or no_env.get(name) is not self.env.get(name)
        ]  # fmt: skip
        single = len(changed) == 1
        if not single:
            # The `let`s of both branches come first: they are the same wherever they are computed.
            self.block.lets += [*yes_block.lets, *no_block.lets]
            condition = self.named(condition, "condition")
            yes_block, no_block = Block(), Block()
        for name in changed:
            yes, no = yes_env.get(name), no_env.get(name)
            if yes is None or no is None:
                self.env[name] = Undefined(f"`{name}` is assigned on one side of an `if` only: give it a value on both")
            elif isinstance(yes, Undefined) or isinstance(no, Undefined):
                self.env[name] = yes if isinstance(yes, Undefined) else no
            elif isinstance(yes, (Sym, Static)) and isinstance(no, (Sym, Static)):
                yes, no = self.symbol(yes, statement), self.symbol(no, statement)
                tensors = yes.tensors | no.tensors
                chosen = choice(condition, *self.do.unify(yes, no), yes_block, no_block)
                self.env[name] = self.named(replace(chosen, tensors=tensors), name)
            else:
                self.env[name] = Undefined(f"`{name}` is something else on each side of an `if`: make it a number")


def _member(module: Any, name: str) -> Any:
    """What `from module import name` gives: an attribute, or a module below."""
    try:
        return getattr(module, name)
    except AttributeError:
        try:
            return importlib.import_module(f"{module.__name__}.{name}")
        except ModuleNotFoundError:
            raise ImportError(f"cannot import name {name!r} from {module.__name__!r}") from None


def _may_be(value: Any, changed: Sym) -> bool:
    """Whether a value is, or holds, what may be the same tensor."""
    if isinstance(value, Sym):
        return not value.weak and not value.tensors.isdisjoint(changed.tensors)
    items = value.items if isinstance(value, Tup) else value.items.values() if isinstance(value, Keywords) else ()
    return any(_may_be(item, changed) for item in items)


def _returns(statements: list[ast.stmt]) -> bool:
    """Whether there is a `return` in them."""
    return any(isinstance(node, ast.Return) for statement in statements for node in ast.walk(statement))
