"""One enabled model in several threads: the calls that would mix are refused, all others compute as ever."""

import copy
import threading

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from video_models import SMALL, make, run, wan  # noqa: E402

import tilewright.diffusers  # noqa: E402


def enabled():
    model, inputs = make(wan, "cpu", grid=SMALL)
    return model, inputs, tilewright.diffusers.enable(model, top_k=0.5, min_tokens=1)


def in_thread(work):
    """Runs `work` in a thread; its result or exception."""
    found = []

    def run_it():
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run_it)
    thread.start()
    return thread, found


def within_a_call(model, inputs, work):
    """Does `work` in this thread while another is in the middle of a call; what that call gives."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_):
        if threading.current_thread() is thread:
            inside.set()
            assert go_on.wait(60)

    hook = model.blocks[1].register_forward_pre_hook(wait)
    started = threading.Event()
    thread, found = in_thread(lambda: started.wait(60) and run(model, inputs))
    started.set()
    try:
        assert inside.wait(60)
        work()
    finally:
        go_on.set()
        thread.join(60)
        hook.remove()
    return found[0]


def test_two_calls_at_once_are_refused():
    model, inputs, _ = enabled()
    expected = run(model, inputs)

    def another():
        with pytest.raises(RuntimeError, match="WanTransformer3DModel is called by two threads at once. .* under a lock"):
            run(model, inputs)

    assert torch.equal(within_a_call(model, inputs, another), expected), "the call under way goes on as ever"
    assert torch.equal(run(model, inputs), expected)


def test_a_copy_is_another_model():
    model, inputs, _ = enabled()
    expected, other = run(model, inputs), copy.deepcopy(model)
    assert torch.equal(within_a_call(model, inputs, lambda: run(other, inputs)), expected)


def test_calls_one_after_another_may_come_from_any_thread():
    model, inputs, _ = enabled()
    expected = run(model, inputs)
    for _ in range(3):
        thread, found = in_thread(lambda: run(model, inputs))
        thread.join()
        assert torch.equal(found[0], expected)
    assert torch.equal(run(model, inputs), expected)


def test_a_call_that_failed_is_over():
    """Its thread lives on, in a pool say."""
    model, inputs, _ = enabled()
    expected = run(model, inputs)
    failed, end = threading.Event(), threading.Event()

    def fail(*_):
        if threading.current_thread() is thread:
            raise ValueError("on purpose")

    hook = model.blocks[1].register_forward_pre_hook(fail)
    started = threading.Event()

    def work():
        started.wait(60)
        with pytest.raises(ValueError, match="on purpose"):
            run(model, inputs)
        failed.set()
        return end.wait(60)

    thread, found = in_thread(work)
    started.set()
    assert failed.wait(60)
    try:
        assert torch.equal(run(model, inputs), expected)
    finally:
        end.set()
        thread.join(60)
        hook.remove()
    assert found == [True]
