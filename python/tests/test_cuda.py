"""What only a GPU has: streams, graphs, memory, several devices."""

import os
import random
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import tilewright  # noqa: E402
from test_torch import COMPILER, check, dense, tensors  # noqa: E402

pytestmark = pytest.mark.gpu


def test_mixed_devices_are_named():
    q, k, v = tensors("cuda", (1, 2, 300, 64))
    with pytest.raises(ValueError, match=r"q is on cuda:0, k is on cpu: move them to one device"):
        tilewright.sparse_attention(q, k.cpu(), v)
    mask = tilewright.block_mask(q.cpu(), k.cpu())
    with pytest.raises(ValueError, match=r"kv_num_blocks of the mask is on cpu: move the mask with `mask.to"):
        tilewright.attention(q, k, v, mask)
    assert torch.equal(
        tilewright.attention(q, k, v, mask.to("cuda")), tilewright.attention(q, k, v, mask.to(torch.device("cuda")))
    )


def test_elements_that_no_kernel_can_read():
    q, k, v = tensors("cuda", (1, 2, 300, 64))
    with pytest.raises(ValueError, match="unit stride"):
        tilewright.sparse_attention(q.mT.contiguous().mT, k, v)
    odd = torch.empty(q.numel() + 1, dtype=q.dtype, device="cuda")[1:].view(q.shape).copy_(q)
    with pytest.raises(ValueError, match="address"):
        tilewright.sparse_attention(odd, k, v)


def test_two_streams_at_once():
    cases = [tensors("cuda", (1, 8, 3000, 128), seed=seed) for seed in (1, 2)]
    expected = [tilewright.sparse_attention(*case, top_k=0.3) for case in cases]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found = [[], []]
    for _ in range(20):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[i].append(tilewright.sparse_attention(*cases[i], top_k=0.3))
    torch.cuda.synchronize()
    for outs, wanted in zip(found, expected):
        assert all(torch.equal(out, wanted) for out in outs)


def test_work_is_ordered_with_the_current_stream():
    """A result is right without a synchronisation between PyTorch's own kernels and ours."""
    stream = torch.cuda.Stream()
    q, k, v = tensors("cuda", (1, 8, 3000, 128))
    expected = tilewright.sparse_attention(q * 2, k, v, top_k=0.3) + 1
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            torch.cuda._sleep(100_000)
            out = tilewright.sparse_attention(q * 2, k, v, top_k=0.3) + 1
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_graph_replayed_with_other_inputs(is_causal):
    static = tensors("cuda", (1, 4, 1500, 64), seed=0)

    def call(q, k, v):
        out, lse = tilewright.sparse_attention(q, k, v, top_k=0.3, is_causal=is_causal, return_lse=True)
        mask = tilewright.block_mask(q, k, top_k=0.3, is_causal=is_causal)
        return out, lse, tilewright.attention(q, k, v, mask)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(*static)
    for seed in (1, 2, 3):
        fresh = tensors("cuda", (1, 4, 1500, 64), seed=seed)
        for to, source in zip(static, fresh):
            to.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        for found, expected in zip(captured, call(*fresh)):
            assert torch.equal(found, expected)


@pytest.mark.skipif(not COMPILER, reason="inductor needs a C compiler")
def test_compiled_with_cuda_graphs():
    compiled = torch.compile(
        lambda q, k, v: tilewright.sparse_attention(q, k, v, top_k=0.3) * 2, fullgraph=True, mode="reduce-overhead"
    )
    for seed in range(4):
        case = tensors("cuda", (1, 4, 1500, 64), seed=seed)
        expected = tilewright.sparse_attention(*case, top_k=0.3) * 2
        assert torch.equal(compiled(*case).clone(), expected)


def test_a_thousand_calls_of_any_shape_leave_no_memory_behind():
    shapes = random.Random(0)

    def call():
        heads, dim = shapes.choice([1, 2, 4]), shapes.choice([64, 128])
        seq_q, seq_kv = shapes.randint(1, 3000), shapes.randint(1, 3000)
        q = torch.randn(1, heads, seq_q, dim, device="cuda").bfloat16()
        k, v = torch.randn(2, 1, heads, seq_kv, dim, device="cuda").bfloat16()
        tilewright.sparse_attention(q, k, v, top_k=shapes.random() or 1.0, top_p=shapes.random() or 1.0)

    # Every size is met: kernels are loaded, and the tuner's own memory is in the driver's pool.
    for _ in range(150):
        call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allocated, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == allocated
    # A size met for the first time may still load a kernel of some hundred KB.
    assert free - torch.cuda.mem_get_info()[0] < 64 << 20


def test_a_warm_call_allocates_through_pytorch_alone():
    q, k, v = tensors("cuda", (1, 8, 3000, 128))
    tilewright.sparse_attention(q, k, v, top_k=0.3)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    segments = torch.cuda.memory_stats()["segment.all.allocated"]
    for _ in range(50):
        tilewright.sparse_attention(q, k, v, top_k=0.3)
    torch.cuda.synchronize()
    if torch.cuda.memory_stats()["segment.all.allocated"] == segments:
        assert torch.cuda.mem_get_info()[0] == free


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="no second GPU"
)
def test_the_second_gpu():
    q, k, v = tensors("cuda:1", (1, 2, 1000, 64))
    assert torch.cuda.current_device() == 0
    out = tilewright.sparse_attention(q, k, v, top_k=1.0)
    assert out.device.index == 1 and torch.cuda.current_device() == 0
    check(out, dense(q, k, v))


def test_the_current_gpu_is_left_alone():
    before = torch.cuda.current_device()
    tilewright.sparse_attention(*tensors("cuda", (1, 2, 300, 64)))
    assert torch.cuda.current_device() == before
    assert torch.zeros(1, device="cuda").device.index == before


def test_the_tuner_works_in_pytorchs_memory(tmp_path):
    """The first call tunes on the call's own tensors; its result is that of the next, and other threads go on meanwhile."""
    code = """
import threading, time, torch, tilewright
beats, done = [], threading.Event()
def beat():
    while not done.is_set():
        beats.append(time.monotonic())
        time.sleep(0.01)
thread = threading.Thread(target=beat)
thread.start()
q, k, v = (torch.randn(1, 1500, 4, 64, device="cuda").bfloat16() for _ in range(3))
with torch.cuda.stream(torch.cuda.Stream()):
    start = time.monotonic()
    first = tilewright.sparse_attention(q, k, v, top_k=0.3, layout="BSHD")
    torch.cuda.current_stream().synchronize()
    took = time.monotonic() - start
    again = tilewright.sparse_attention(q, k, v, top_k=0.3, layout="BSHD")
    torch.cuda.current_stream().synchronize()
done.set()
thread.join()
assert torch.equal(first, again)
pause = max(b - a for a, b in zip(beats, beats[1:]))
print(f"the first call took {took:.2f} s; the longest pause of another thread was {pause:.3f} s")
assert pause < max(0.25, took / 2), pause
"""
    environment = {**os.environ, "TILEWRIGHT_POLICY": "tune", "TILEWRIGHT_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    print(run.stdout)


def test_the_whole_video_length():
    """Wan 2.1 at 480p: 32 760 tokens, a short last block, one head against float64."""
    q, k, v = tensors("cuda", (1, 2, 32_760, 128))
    out, mask = tilewright.sparse_attention(q, k, v, return_mask=True)
    rows = slice(32_700, 32_760)
    keep = mask.to_dense()[:, :, -1:].repeat_interleave(64, dim=-1)[..., :32_760].expand(-1, -1, 60, -1)
    check(out[:, :, rows], dense(q[:, :, rows], k, v, keep))
    assert 0.5 < mask.sparsity() < 0.99
