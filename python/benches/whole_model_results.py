"""What `whole_model.py` measures: its rows, their file, and the tables of the documentation."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Optional

from film_model import SIZES, TAILS, Rule

# How copies are distilled: the rate of AdamW, and the clips of a step.
DISTIL_RATE, DISTIL_BATCH = 1e-5, 4
BEGIN, END = "<!-- rendered by python/benches/whole_model.py from here … -->", "<!-- … to here -->"


@dataclass
class Row:
    """A rule and a tail, of the model as it is or of a copy after so many steps of distillation."""

    order: str
    top_k: float
    top_p: Optional[float]
    tail: str
    steps: int
    kept: float
    error: float
    loss: float
    psnr: Optional[float]
    seconds: float = 0.0

    @property
    def rule(self) -> Rule:
        return Rule(self.order, self.top_k, self.top_p, self.tail)


@dataclass
class Results:
    """All of a model. `whole` is the error with every block kept, which is what the kernels differ in."""

    device: str
    versions: dict[str, str]
    size: str
    parameters: int
    seed: int
    train_steps: int
    train_seconds: float
    loss: float
    whole: float
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, path: str) -> Results:
        with open(path) as file:
            results = cls(**json.load(file))
        results.rows = [Row(**row) for row in results.rows]  # type: ignore[arg-type]
        return results

    def write(self, path: str) -> None:
        with open(path + ".part", "w") as file:
            json.dump(asdict(self), file, indent=1)
        os.replace(path + ".part", path)

    def has(self, rule: Rule, steps: int) -> bool:
        return any((row.rule, row.steps) == (rule, steps) for row in self.rows)


# ---- the tables ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "none": "no tail",
    "block": "block",
    "row64": "row, 64 keys",
    "row128": "row, 128 keys",
    "block-keys": "block, by keys",
    "row128-keys": "row, 128 keys, by keys",
}
assert COLUMNS.keys() == TAILS.keys()
# The key of a row, its title, which is the best, and the digits that are shown.
Figure = tuple[str, str, Callable[[Iterable[float]], float], int]
ERROR: Figure = ("error", "difference", min, 4)
LOSS: Figure = ("loss", "loss", min, 4)
SAMPLES: Figure = ("psnr", "samples, dB", max, 1)


class Group:
    """The rows of a rule whatever its tail, of all seeds."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.order, self.top_k, self.top_p, self.steps = _group_of(rows[0])
        self.kept = _mean([row.kept for row in rows])

    @property
    def rule(self) -> str:
        top_p = "" if self.top_p is None else f" ∪ top-p {self.top_p:g}"
        return f"top-k {self.top_k:g}{top_p}"

    @property
    def share(self) -> str:
        """The kept share, which top-p makes another one for each tail: what a layer gets depends on those before it."""
        shares = [
            _mean([row.kept for row in self.rows if row.tail == tail]) for tail in {row.tail for row in self.rows}
        ]
        return _range([100 * share for share in shares], 1) + " %"

    def cells(self, figure: Figure) -> str:
        """A cell for each tail, the best in bold."""
        key, _, best, digits = figure
        means = []
        for tail in COLUMNS:
            values = [getattr(row, key) for row in self.rows if row.tail == tail and getattr(row, key) is not None]
            means.append(round(_mean(values), digits) if values else None)
        winner = best(mean for mean in means if mean is not None)
        texts = ["" if mean is None else f"{mean:.{digits}f}" for mean in means]
        return " | ".join(f"**{text}**" if mean == winner else text for text, mean in zip(texts, means)) + " |"


def markdown(runs: list[Results]) -> str:
    """The tables, of one model or of the means over several seeds."""
    rows = [row for run in runs for row in run.rows]
    groups = [Group([row for row in rows if _group_of(row) == key]) for key in dict.fromkeys(map(_group_of, rows))]
    groups.sort(key=lambda group: (group.steps, group.order, group.kept))
    untrained = [group for group in groups if not group.steps]
    sampled = [group for group in untrained if any(row.psnr is not None for row in group.rows)]
    seeds = sorted(run.seed for run in runs)
    spread, whose = "", f"seed {seeds[0]}"
    if len(seeds) > 1:
        spread = f" A seed's figure is at most {100 * _spread(untrained):.0f} % from the mean."
        whose = f"the mean of the seeds {', '.join(map(str, seeds))}"
    device = "the CPU" if runs[0].device == "CPU" else f"an {runs[0].device}"
    steps = _range([run.train_steps for run in runs], 0)
    seconds = _range([run.train_seconds for run in runs], 0)
    parts = [
        f"A whole model, all {SIZES[runs[0].size].layers} layers sparse and nothing trained for it: the mean square of "
        "the difference of its velocity to the same model's with dense attention, whose own loss is "
        f"{_mean([run.loss for run in runs]):.4f}.{spread} With every block kept the difference is "
        f"{max(run.whole for run in runs):.0e}, that of the two kernels.",
        _table(
            ["order", "rule", "kept"],
            [f"| {group.order} | {group.rule} | {group.share} | {group.cells(ERROR)}" for group in untrained],
        ),
        f"`python/benches/whole_model.py` measures this: a video transformer of {runs[0].parameters / 1e6:.0f} M "
        f"parameters that learnt one short film with dense attention, {steps} steps in {seconds} s; on {device}, in "
        f"bf16, {whose}.",
    ]
    if sampled:
        parts += [
            "Its diffusion loss on the same clips, which are cut from that film, and the PSNR of what it samples "
            "against the dense model's samples from the same noise:",
            _table(
                ["order", "rule", ""],
                [
                    f"| {group.order} | {group.rule} | {figure[1]} | {group.cells(figure)}"
                    for group in sampled
                    for figure in (LOSS, SAMPLES)
                ],
            ),
        ]
    if distilled := [group for group in groups if group.steps]:
        rate = f"{DISTIL_RATE:.0e}".replace("e-0", "e-")
        parts += [
            "The same after distillation, in cubes: a copy of the model learns the dense velocities with sparse "
            f"attention, {DISTIL_BATCH} clips a step at a rate of {rate}.",
            _table(
                ["steps", "rule", "kept", ""],
                [
                    f"| {group.steps} | {group.rule} | {group.share} | {figure[1]} | {group.cells(figure)}"
                    for group in distilled
                    for figure in (ERROR, LOSS, SAMPLES)
                ],
            ),
        ]
    wrapped = [part if part.startswith("|") else textwrap.fill(part, 118, break_on_hyphens=False) for part in parts]
    return "\n\n".join(wrapped)


def _group_of(row: Row) -> tuple[str, float, Optional[float], int]:
    return row.order, row.top_k, row.top_p, row.steps


def _table(head: list[str], lines: list[str]) -> str:
    head = [*head, *COLUMNS.values()]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _range(values: list[float] | list[int], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _spread(groups: list[Group]) -> float:
    """The largest relative distance of a seed's difference to the mean over the seeds."""
    distances = [0.0]
    for group in groups:
        for tail in COLUMNS:
            errors = [row.error for row in group.rows if row.tail == tail]
            distances += [abs(error / _mean(errors) - 1) for error in errors]
    return max(distances)


def render(runs: list[Results], path: str) -> None:
    """Puts the tables between the markers of a Markdown file; prints them for the path "-"."""
    text = markdown(runs)
    if path == "-":
        print(text)
        return
    with open(path) as file:
        document = file.read()
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise SystemExit(f"{path} has no place for the tables: needed a line {BEGIN!r} and, below it, a line {END!r}")
    before, rest = document.split(BEGIN)
    with open(path, "w") as file:
        file.write(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
