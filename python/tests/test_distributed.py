"""Gradients through DistributedDataParallel and FSDP: two processes on the CPU against one with both halves of the batch."""

import faulthandler
import os

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

import tilewright  # noqa: E402

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

WORLD = 2


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(128, 384), nn.Linear(128, 128)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 64)).permute(2, 0, 3, 1, 4)
        attended = tilewright.sparse_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), top_k=0.5).float()
        return self.out(attended.transpose(1, 2).flatten(2))


def model():
    torch.manual_seed(0)
    return Layer()


def loss(layer, x):
    return layer(x).pow(2).mean()


def batch():
    return torch.randn(WORLD, 200, 128, generator=torch.Generator().manual_seed(1))


def work(rank, folder, kind, all_done):
    faulthandler.enable()
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORLD)
    layer = model()
    if kind == "DistributedDataParallel":
        wrapped = nn.parallel.DistributedDataParallel(layer)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(layer, mesh=init_device_mesh("cpu", (WORLD,)))
    loss(wrapped, batch()[rank : rank + 1]).backward()
    whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in layer.parameters()]
    if rank == 0:
        torch.save(whole, f"{folder}/gradients.pt")
    # gloo's threads may abort a process while a peer or the interpreter ends: nobody leaves before all are done, and then
    # at once.
    all_done.wait()
    os._exit(0)


@pytest.mark.parametrize("kind", ["DistributedDataParallel", "fully_shard"])
def test_two_processes_have_the_gradients_of_one(kind, tmp_path):
    all_done = torch.multiprocessing.get_context("spawn").Barrier(WORLD)
    torch.multiprocessing.spawn(work, (str(tmp_path), kind, all_done), nprocs=WORLD)
    layer = model()
    loss(layer, batch()).backward()
    for found, parameter in zip(torch.load(tmp_path / "gradients.pt"), layer.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-7)
