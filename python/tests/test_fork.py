"""Processes that are forked after their parent has computed: threads, locks and a started GPU do not survive a fork."""

import multiprocessing
import threading

import numpy as np
import pytest

import tilewright

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"),
    # Python warns of a fork with other threads about, which is what is tested.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

SECONDS = 60
LENGTH = 700


def inputs():
    return [np.random.default_rng(seed).standard_normal((1, 2, LENGTH, 64)).astype(np.float16) for seed in range(3)]


def attend(_=None):
    return tilewright.sparse_attention(*inputs(), top_k=0.4, is_causal=True)


def whole(_=None):
    """Every parallel loop there is on the CPU: selection with a mask function, lists, forward and backward."""
    q, k, v = inputs()
    mask = tilewright.block_mask(q, k, top_k=0.5, is_causal=True)
    out, lse = tilewright.attention(q, k, v, mask, return_lse=True)
    lists = tuple(mask.lists().values())
    gradients = tilewright._native.attention_backward(out, None, q, k, v, out, lse, *lists, 128, 64, None, 0, 1, False)
    return [out, lse, *gradients, tilewright.TokenGrid((7, 10, 10)).regroup(out, 2)]


def put(queue, work):
    queue.put(work())


def in_child(work):
    """What `work` returns in a forked process."""
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=put, args=(queue, work))
    child.start()
    try:
        return queue.get(timeout=SECONDS)
    finally:
        child.join(SECONDS)
        alive = child.is_alive()
        child.kill()
        assert not alive, "the child hangs at its end"


def same(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_process():
    expected = whole()
    assert same(in_child(whole), expected)
    assert same(whole(), expected), "the parent goes on"
    assert same(in_child(whole), expected)


def test_a_child_of_a_child():
    expected = attend()
    child, grandchild = in_child(lambda: (attend(), in_child(attend)))
    assert np.array_equal(child, expected) and np.array_equal(grandchild, expected)


def test_a_child_with_threads_of_its_own():
    expected = attend()

    def four_threads():
        found = [None] * 4
        threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, attend())) for i in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return found

    assert same(in_child(four_threads), [expected] * 4)


def test_a_pool():
    expected = attend()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(attend, range(4)).get(timeout=SECONDS)
    assert same(found, [expected] * 4)


def test_a_fork_while_other_threads_compute():
    expected = attend()
    ended = threading.Event()

    def compute():
        while not ended.is_set():
            attend()

    threads = [threading.Thread(target=compute) for _ in range(2)]
    [thread.start() for thread in threads]
    try:
        for _ in range(5):
            assert np.array_equal(in_child(attend), expected)
    finally:
        ended.set()
        [thread.join() for thread in threads]


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
def test_workers_that_load_data():
    class Outputs(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.from_numpy(attend()) + index

    expected = torch.from_numpy(attend())
    loader = torch.utils.data.DataLoader(
        Outputs(), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=SECONDS
    )
    for index, found in enumerate(loader):
        assert torch.equal(found[0], expected + index)


def said_of_the_gpu():
    """The errors of a call with the parent's tensor, of one with the GPU by number, and the result on the CPU."""
    errors = []
    for call in (lambda: tilewright.sparse_attention(*ON_GPU), lambda: tilewright.gpu_name(0)):
        try:
            call()
        except RuntimeError as error:
            errors.append(str(error))
    return errors, attend()


@pytest.mark.gpu
def test_a_gpu_of_the_parent():
    global ON_GPU
    ON_GPU = [torch.from_numpy(x).cuda() for x in inputs()]
    expected = tilewright.sparse_attention(*ON_GPU)
    (of_tensors, of_number), on_cpu = in_child(said_of_the_gpu)
    assert "spawn" in of_tensors and "fork" in of_tensors
    assert "started CUDA before this process was forked" in of_number and "spawn" in of_number
    assert np.array_equal(on_cpu, attend())
    assert torch.equal(tilewright.sparse_attention(*ON_GPU), expected), "the parent goes on"
