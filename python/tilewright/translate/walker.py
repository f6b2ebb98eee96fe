"""What the parts of a translation may ask of the walk over the function's tree, which has them."""

from __future__ import annotations

import ast
from typing import Any, NoReturn, Protocol

from .values import Sym


class Walker(Protocol):
    """The walk: where errors are, where `let`s go, and what a value is on the GPU."""

    kind: str

    @property
    def do(self) -> Any:
        """The operators (`Arithmetic`)."""

    def fail(self, node: ast.AST, reason: str) -> NoReturn:
        """Ends the translation with an error at a place of the function."""

    def named(self, value: Sym, name: str) -> Sym:
        """The value under a name, so that it can be written twice."""

    def weakened(self, value: Any) -> Any:
        """The value as a Python number."""

    def symbol(self, value: Any, node: ast.AST) -> Sym:
        """The value as a number or bool on the GPU."""

    def items(self, value: Any, node: ast.AST) -> list:
        """What a tuple, list or range holds."""

    def binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        """An operator between two values."""

    def power(self, left: Any, right: Any, node: ast.AST) -> Any:
        """``left ** right``."""

    def formula(self, body: list[ast.stmt], names: dict[str, Any], at: ast.AST) -> Any:
        """The value of a body of statements over `names`; errors point at the call that stands for it."""
