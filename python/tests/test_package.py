"""The package as it is imported."""

import tilewright


def test_the_package_says_what_it_is():
    assert tilewright.__version__.count(".") == 2
    assert issubclass(tilewright.Error, RuntimeError)


def test_a_gpu_that_is_not_there_is_an_error():
    try:
        tilewright.gpu_name(99)
    except tilewright.Error as error:
        assert "GPU" in str(error)
    else:
        raise AssertionError("there is a GPU 99")
