"""The syntax tree of a function: of several lambdas on a line, the right one."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import types

from .values import Place, TranslationError


def find(function: types.FunctionType) -> tuple[ast.FunctionDef | ast.Lambda, Place]:
    """The tree of ``function`` and where it is.

    Raises ``TranslationError`` where there is no text, or where it does not say which function is meant.
    """
    code, name = function.__code__, function.__name__
    filename = code.co_filename
    lines = linecache.getlines(filename, function.__globals__)
    if not lines:
        try:
            lines = inspect.findsource(function)[0]
        except (OSError, TypeError):
            lines = []
    if not lines:
        reason = f"its text is not to be found ({filename}): define it in a file or in a notebook's cell"
        raise TranslationError(name, reason)
    place = Place(filename, lines, code.co_firstlineno)
    try:
        functions = _functions("".join(lines))
    except SyntaxError as error:
        reason = f"its file does not parse any more ({error.msg}, line {error.lineno}): has it changed since it was read?"
        raise TranslationError(name, reason, place) from None
    except (RecursionError, MemoryError, ValueError) as error:
        reason = f"its file cannot be parsed, Python says {type(error).__name__}: {error}"
        raise TranslationError(name, reason, place) from None
    candidates = [node for node in functions if _first_line(node) == code.co_firstlineno and _fits(node, function)]
    if len(candidates) > 1:
        candidates = [node for node in candidates if _spans(node, code)] or candidates
        candidates = [node for node in candidates if _same_code(node, code)] or candidates
    if not candidates:
        reason = "its text is not at the line where Python found it: has the file changed since it was read?"
        raise TranslationError(name, reason, place)
    if len({ast.dump(node) for node in candidates}) > 1:
        reason = "several functions of this line could be meant: write each on a line of its own"
        raise TranslationError(name, reason, place, candidates[0])
    return candidates[0], place


@functools.lru_cache(maxsize=64)
def _functions(text: str) -> list[ast.FunctionDef | ast.Lambda]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]


def _first_line(node: ast.FunctionDef | ast.Lambda) -> int:
    """What Python calls the first line of a function: that of its first decorator."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _fits(node: ast.FunctionDef | ast.Lambda, function: types.FunctionType) -> bool:
    """Whether name and parameters are the function's."""
    code, arguments = function.__code__, node.args
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    count = code.co_argcount + code.co_kwonlyargcount
    return name == code.co_name and tuple(a.arg for a in listed) == code.co_varnames[:count]


def _spans(node: ast.FunctionDef | ast.Lambda, code: types.CodeType) -> bool:
    """Whether the code's instructions lie within the node's body, where Python says so: from 3.11 on."""
    if not hasattr(code, "co_positions"):
        return True
    body = node.body if isinstance(node, ast.Lambda) else node
    start, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    places = [
        (line, column, end_line, end_column)
        for line, end_line, column, end_column in code.co_positions()
        if None not in (line, column, end_line, end_column) and (end_line, end_column) != (line, column)
    ]
    # The preamble of a closure is at the start of the line: most, not all, instructions tell.
    inside = [start <= (line, column) and (end_line, end_column) <= end for line, column, end_line, end_column in places]
    exact = [((line, column), (end_line, end_column)) == (start, end) for line, column, end_line, end_column in places]
    return any(exact) if isinstance(node, ast.Lambda) else any(inside)


def _same_code(node: ast.FunctionDef | ast.Lambda, code: types.CodeType) -> bool:
    """Whether the node compiles to these instructions, constants and names."""
    if not isinstance(node, ast.Lambda):
        return True
    # What the code closes over has to be a variable of an enclosing function here too.
    outer = ast.parse(f"def outer({', '.join(code.co_freevars)}): return None")
    outer.body[0].body = [ast.Return(node)]
    made = compile(ast.fix_missing_locations(outer), code.co_filename, "exec")
    for _ in range(2):
        made = next(constant for constant in made.co_consts if isinstance(constant, types.CodeType))

    def shape(code: types.CodeType) -> tuple:
        constants = [repr(constant) for constant in code.co_consts if not isinstance(constant, types.CodeType)]
        return code.co_code, constants, code.co_names, code.co_freevars

    return shape(made) == shape(code)
