"""A denoising step of a whole model on a GPU, dense and sparse, eager and compiled by blocks: random weights, one timestep.

    python python/benches/end_to_end.py --json end-to-end.json                    # Wan 1.3B at 480p and Wan 14B at 720p
    python python/benches/end_to_end.py --json end-to-end.json --only wan-1.3b
    python python/benches/end_to_end.py --tiny                                    # a small model, to try the script

Every row is a median of `--steps` steps after two that are not counted, with the number of graphs that were compiled and, where
nothing is waited for, how long the host takes to start a step. The file is written after each row, and a later run adds the
rows that are missing. Needs diffusers and a GPU; of Wan 14B 28 GB of weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from typing import Any, Optional

import diffusers
import torch
from torch._dynamo.utils import counters

import tilewright
import tilewright.diffusers

WAN = {"attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256}
# The model's options, and the (t, h, w) of its latents.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "wan-1.3b": ("Wan 1.3B, 480p", {**WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, (21, 60, 104)),
    "wan-14b": ("Wan 14B, 720p", {**WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}, (21, 90, 160)),
}
TINY = {"tiny": ("a tiny Wan", {**WAN, "num_attention_heads": 2, "ffn_dim": 256, "num_layers": 4}, (10, 48, 64))}
# 5 % of the blocks, by top-k; `None` is dense attention.
SPARSE: dict[str, Optional[dict[str, Any]]] = {
    "dense": None,
    "sparse, no tail, raster": {"grid": None, "tail": None},
    "sparse, no tail": {"tail": None},
    "sparse, block tail": {},
}


def model_of(options: dict[str, Any], device: str) -> torch.nn.Module:
    """The model with random weights, made where it runs."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = diffusers.WanTransformer3DModel(**options)
    finally:
        torch.set_default_dtype(before)
    return model.to(device, torch.bfloat16).eval()


def inputs_of(sizes: tuple[int, int, int], device: str) -> dict[str, Any]:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    return {
        "hidden_states": noise(1, 16, *sizes),
        "timestep": torch.tensor([900], device=device),
        "encoder_hidden_states": noise(1, 512, 4096),
        "return_dict": False,
    }


def measure(model: torch.nn.Module, inputs: dict[str, Any], steps: int, device: str) -> dict[str, Any]:
    """Milliseconds of a step, and of the host's part of it."""
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    taken, host = [], []
    started = time.perf_counter()
    with torch.no_grad():
        for number in range(2 + steps):
            synchronize()
            begin = time.perf_counter()
            model(**inputs)
            returned = time.perf_counter()
            synchronize()
            if number == 1:
                first = time.perf_counter() - started
            if number >= 2:
                taken.append(1e3 * (time.perf_counter() - begin))
                host.append(1e3 * (returned - begin))
    return {
        "ms": statistics.median(taken),
        "least_ms": min(taken),
        "most_ms": max(taken),
        "host_ms": statistics.median(host),
        "first_two_s": first,
    }


def rows(name: str, steps: int, dense_steps: int, device: str, done: dict[str, Any], save: Any) -> None:
    """Measures what is missing of a model."""
    title, options, sizes = (MODELS | TINY)[name]
    model, inputs = model_of(options, device), inputs_of(sizes, device)
    if device == "cuda":
        model.set_attention_backend("_native_cudnn")
    found = done.setdefault(name, {"title": title, "rows": {}})["rows"]
    for compiled in (False, True):
        for what, enabled in SPARSE.items():
            key = f"{what}, {'compiled by blocks' if compiled else 'eager'}"
            if key in found:
                continue
            torch._dynamo.reset()
            counters.clear()
            handle = None
            if enabled is not None:
                handle = tilewright.diffusers.enable(model, top_k=0.05, top_p=None, **enabled)
            if compiled:
                model.compile_repeated_blocks(fullgraph=True)
            try:
                row = measure(model, inputs, dense_steps if enabled is None else steps, device)
            finally:
                if compiled:
                    for module in model.modules():
                        module._compiled_call_impl = None
            row["graphs"] = counters["stats"]["unique_graphs"]
            if handle is not None:
                report = handle.report()
                row["kept"], row["sparse_calls"] = 1 - report.sparsity, report.sparse_calls
                row["order"] = report.order
                handle.disable()
            found[key] = row
            save()
            print(f"{title}: {key}: {row['ms']:.1f} ms, host {row['host_ms']:.1f} ms, {row['graphs']} graphs", flush=True)
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="where the figures go, and come from where a run goes on")
    parser.add_argument("--only", choices=MODELS, help="one model alone")
    parser.add_argument("--tiny", action="store_true", help="a small model, on the CPU where there is no GPU")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--dense-steps", type=int, default=3)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU: --tiny tries the script on the CPU")
    done: dict[str, Any] = {}
    if options.json and os.path.exists(options.json):
        with open(options.json) as file:
            done = json.load(file)["models"]
    about = {
        "version": tilewright.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "top_k": 0.05,
        "models": done,
    }

    def save() -> None:
        if options.json:
            with open(options.json, "w") as file:
                json.dump(about, file, indent=1)
                file.write("\n")

    for name in ["tiny"] if options.tiny else [options.only] if options.only else MODELS:
        rows(name, options.steps, options.dense_steps, device, done, save)


if __name__ == "__main__":
    main()
