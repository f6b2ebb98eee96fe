"""The package as it is imported."""

import ast
import inspect
import pathlib

import pytest

import tilewright
from tilewright import _native


def test_the_package_says_what_it_is():
    assert tilewright.__version__.count(".") == 2
    assert issubclass(tilewright.Error, RuntimeError)
    assert tilewright.best_device()


def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(tilewright.Error, match="GPU"):
        tilewright.gpu_name(99)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'flash'"):
        tilewright.flash


def test_the_stubs_are_those_of_the_module():
    stubs = ast.parse((pathlib.Path(tilewright.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
    functions = {node.name: [argument.arg for argument in node.args.args] for node in stubs.body if isinstance(node, ast.FunctionDef)}
    native = {name: value for name, value in vars(_native).items() if inspect.isbuiltin(value)}
    assert set(functions) == set(native)
    for name, parameters in functions.items():
        assert list(inspect.signature(native[name]).parameters) == parameters, name
    assert (pathlib.Path(tilewright.__file__).parent / "py.typed").exists()
