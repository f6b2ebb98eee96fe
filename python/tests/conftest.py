"""What the tests share. Tests marked `gpu` are skipped, with the reason, where PyTorch sees no GPU.

Unless told otherwise they start from an empty kernel cache and take the preferred schedule: tuning every random size would take
hours, and what it picks is not what they test. `test_cuda.py` has one test of a tuned call.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("TILEWRIGHT_POLICY", "first-valid")
if "TILEWRIGHT_CACHE" not in os.environ:
    os.environ["TILEWRIGHT_CACHE"] = tempfile.mkdtemp(prefix="tilewright-tests-")
    atexit.register(shutil.rmtree, os.environ["TILEWRIGHT_CACHE"], ignore_errors=True)

HAS_TORCH = importlib.util.find_spec("torch") is not None

if HAS_TORCH:
    import torch


def pytest_collection_modifyitems(items):
    if not HAS_TORCH:
        reason = "PyTorch is not installed"
    elif not torch.cuda.is_available():
        reason = "no GPU"
    else:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a test of PyTorch runs."""
    if not HAS_TORCH:
        pytest.skip("PyTorch is not installed")
    return request.param
