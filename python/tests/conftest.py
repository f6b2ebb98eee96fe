"""What the tests share. Tests marked `gpu` are skipped, with the reason, where PyTorch sees no GPU."""

import importlib.util

import pytest

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
