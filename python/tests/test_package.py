"""The package as it is imported."""

import ast
import importlib.util
import inspect
import pathlib
import subprocess
import sys

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


# ---- in processes of their own -----------------------------------------------------------------------------------

NUMPY_CALL = """
import numpy
q = numpy.zeros((1, 2, 300, 64), numpy.float16)
assert tilewright.sparse_attention(q, q, q).shape == q.shape
assert tilewright.TokenGrid((3, 10, 10)).regroup(q, 2).shape == q.shape
"""


def run(program, **options):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("torch", ["None", "types.ModuleType('torch')", "installed"])
def test_everything_that_is_listed_can_be_imported(torch):
    program = "import sys, types\n" + (f"sys.modules['torch'] = {torch}\n" if torch != "installed" else "")
    program += "from tilewright import *\nimport tilewright\n"
    program += "assert all(getattr(tilewright, name) is globals()[name] for name in tilewright.__all__)\n"
    program += "assert set(tilewright.__all__) <= set(dir(tilewright)) and 'sparse_attention' in tilewright.__all__\n"
    program += "print('SparseAttention' in tilewright.__all__)\n" + NUMPY_CALL
    has_torch = torch == "installed" and importlib.util.find_spec("torch") is not None
    assert run(program).strip() == str(has_torch)


STUBS = {
    "nothing in it": "types.ModuleType('torch')",
    "a version alone": "types.SimpleNamespace(__version__='2.11.0')",
    "Tensor is no type": "types.SimpleNamespace(__version__='2.11.0', Tensor=lambda: None)",
    "a version that is none": "types.SimpleNamespace(__version__='nightly', Tensor=type('Tensor', (), {}))",
}


@pytest.mark.parametrize("stub", STUBS.values(), ids=STUBS)
@pytest.mark.parametrize("before", [True, False])
def test_a_module_of_that_name_that_is_not_pytorch(stub, before):
    put = f"sys.modules['torch'] = {stub}\n"
    program = "import sys, types\n" + (put if before else "") + "import tilewright\n" + ("" if before else put) + NUMPY_CALL
    program += """
try:
    tilewright.SparseAttention
except tilewright.Error as error:
    assert "is not PyTorch" in str(error) and "made by a program, without a file" in str(error), error
else:
    raise SystemExit("no error")
Tensor = getattr(sys.modules["torch"], "Tensor", None)
if isinstance(Tensor, type):
    try:
        tilewright.sparse_attention(Tensor(), q, q)
    except tilewright.Error as error:
        assert "is not PyTorch" in str(error), error
    else:
        raise SystemExit("no error")
"""
    run(program)


@pytest.mark.parametrize("version, is_old", [("2.5.1", True), ("1.13", True), ("2.6.0+cpu", False), ("2.10rc1", False), ("3.0.0a0+git1", False)])
def test_versions(version, is_old):
    program = f"""
import sys, types, tilewright
from tilewright import _native, _torch
stub = types.ModuleType("torch")
stub.__version__, stub.Tensor = {version!r}, type("Tensor", (), {{}})
sys.modules["torch"] = stub
_native.bind_torch = lambda torch: (_ for _ in ()).throw(RuntimeError("new enough"))
try:
    _torch.bind()
except RuntimeError as error:
    print(error)
"""
    said = run(program)
    assert ("is too old, needed 2.6 or newer" in said) == is_old and ("new enough" in said) != is_old, said


def test_entries_of_the_path_that_are_no_text():
    """Python passes over what is no text, and so does the search for NVRTC."""
    entries = "[None, 7, pathlib.Path('/opt/python'), b'/opt/python', '', object()]"
    run(f"import pathlib, sys\nsys.path.extend({entries})\nimport tilewright\ntilewright.best_device()\n" + NUMPY_CALL)
