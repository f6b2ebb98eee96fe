"""Tilewright beside the other kernels, dense and block-sparse: one process, one run, the same masks for all.

    python3 benches/peers.py --json peers.json --plot peers.svg      # about five minutes on an H100
    python3 benches/peers.py --quick --workloads 480p --kept 5
    python3 benches/peers.py --from-json peers.json --plot peers.svg # draws again, without a GPU

Random bf16 data; times are medians of CUDA events over calls one after another, warmed up. Every row of a mask keeps the same number of
blocks at random places (`--uneven`: a tenth of the rows keep ten times as many as the others). Effective TFLOP/s are
4 · batch · heads · seq_q · seq_kv · d · kept share / time, 2.5 times that for a backward; ratios are to cuDNN's dense pass.
The error is that of 64 rows against float32, relative. A user's call and its backward are timed with each tail of `TAILS` too, by turns with those
without one; their effective rates count the kept blocks alone.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field

import torch
import render
from peer_kernels import BACKWARD, CALL, CUDNN, FORWARD, MASK, TAILS, WORKLOADS, Flex, Missing, Work, first_line, peers, random_map

KEPT = [2.0, 5.0, 10.0, 25.0, 100.0]
# How often calls that are compared take turns.
TURNS = 5


@dataclass
class Row:
    """One measurement."""

    workload: str
    peer: str
    what: str
    kept: float
    ms: float
    calls: int
    tflops: float | None
    ratio: float | None = None
    error: float | None = None
    # What stands for the blocks left out, None for nothing.
    tail: str | None = None


@dataclass
class Results:
    """All of a run, and why something is not in it."""

    device: str
    versions: dict
    uneven: bool
    rows: list = field(default_factory=list)
    missing: dict = field(default_factory=dict)


def medians_ms(calls, quick):
    """For each call the median over as many as fit in about 0.4 s, and their number; several calls take turns."""
    counts = []
    for call in calls:
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        once = time.perf_counter() - begin
        counts.append(min(30, max(5, round((0.1 if quick else 0.4) / once))))
    turns = 1 if len(calls) == 1 else TURNS
    events = [[] for _ in calls]
    for _ in range(turns):
        for call, count, timed in zip(calls, counts, events):
            for _ in range(math.ceil(count / turns)):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                timed.append((start, end))
    torch.cuda.synchronize()
    return [(statistics.median(start.elapsed_time(end) for start, end in timed), len(timed)) for timed in events]


def error_of(out, work, map, blocks):
    """The relative error of 64 query rows of the last head against float32."""
    rows = slice(work.seq // 2, work.seq // 2 + 64)
    q, k, v = work.q[0, -1, rows].float(), work.k[0, -1].float(), work.v[0, -1].float()
    scores = q @ k.T / math.sqrt(work.d)
    if map is not None:
        row_blocks = torch.arange(rows.start, rows.stop, device="cuda") // blocks[0]
        kept = map[0, -1, row_blocks].repeat_interleave(blocks[1], dim=1)[:, : work.seq]
        scores = scores.masked_fill(~kept, -math.inf)
    expected = scores.softmax(-1) @ v
    return float((out[0, -1, rows].float() - expected).norm() / expected.norm())


def measure(results, work, peer, kept, options):
    """Times a peer's calls at one kept share (None: dense) and prints a line for each."""
    map = None if peer.blocks is None else random_map(work, kept, options.uneven, peer.blocks)
    share = 1.0 if map is None else float(map.float().mean())
    for what, calls in peer.calls(work, map, kept):
        calls = calls if isinstance(calls, dict) else {None: calls}
        error = None
        if what == FORWARD:
            with torch.no_grad():
                error = error_of(peer.output(calls[None]()), work, map, peer.blocks)
        with torch.set_grad_enabled(what == BACKWARD):
            measured = medians_ms(list(calls.values()), options.quick)
        dense_what = BACKWARD if what == BACKWARD else FORWARD
        dense = [row.ms for row in results.rows if (row.workload, row.peer, row.what) == (work.name, CUDNN, dense_what)]
        for tail, (ms, count) in zip(calls, measured):
            tflops = None if what == MASK else work.flops(share, what) / ms / 1e9
            ratio = dense[0] / ms if dense and what != MASK else None
            row = Row(work.name, peer.name, what, share, ms, count, tflops, ratio, error, tail)
            results.rows.append(row)
            print(line(row), flush=True)


def attempt(results, work, peer, kept, options):
    """Measures; gives the reason when something of it could not be. A peer that refuses a shape must not end the run."""
    try:
        measure(results, work, peer, kept / 100, options)
    except Missing as reason:
        return str(reason)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def line(row):
    rate = "" if row.tflops is None else f"{row.tflops:6.0f} TF/s"
    ratio = "" if row.ratio is None else f"{row.ratio:6.2f}× cuDNN dense"
    error = "" if row.error is None else f"  error {row.error:.1e}"
    what = row.what if row.tail is None else f"{row.what}, {row.tail} tail"
    return f"  {row.workload:<10} {row.peer:<24} {what:<28} {100 * row.kept:6.2f} %  {row.ms:9.3f} ms  {rate:>11}  {ratio}{error}"


def run(options):
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    results = Results(torch.cuda.get_device_name(), versions, options.uneven)
    print(f"{results.device}, PyTorch {torch.__version__}, bf16, {'uneven' if options.uneven else 'even'} rows")
    end = time.monotonic() + options.seconds
    made = {}
    for name in options.workloads:
        work = Work(name, *WORKLOADS[name])
        for key, make in peers():
            if options.only and key not in options.only:
                continue
            try:
                made[key] = made.get(key) or make()
            except Missing as reason:
                results.missing[key] = str(reason)
                continue
            peer = made[key]
            for kept in [100.0] if peer.blocks is None else options.kept:
                where = f"{key}, {name}, {kept:g} %"
                if time.monotonic() > end:
                    results.missing[where] = f"not measured: the run's {options.seconds} s were over"
                    continue
                failure = attempt(results, work, peer, kept, options)
                if failure and isinstance(peer, Flex) and peer.blocks == (128, 64):
                    results.missing[f"{where}, blocks of 128×64"] = failure
                    made[key] = peer = Flex((128, 128))
                    failure = attempt(results, work, peer, kept, options)
                if failure:
                    results.missing[where] = failure
        del work
        torch.cuda.empty_cache()
    return results


# ---- showing -------------------------------------------------------------------------------------------------------


# How a call with a tail is drawn.
TAIL_LINES = dict(zip(TAILS, ["--", "-."]))


def plot(results, path):
    """Forward time against sparsity for each workload, with the line of a kernel that wastes nothing."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tilewright"  # equal figures, equal bytes
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.workload for row in results.rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(5.2 * len(names), 4.4), squeeze=False)
    for axis, name in zip(axes[0], names):
        rows = [row for row in results.rows if row.workload == name and row.what in (FORWARD, CALL)]
        for peer, what, tail in dict.fromkeys((row.peer, row.what, row.tail) for row in rows):
            points = sorted((row.kept, row.ms) for row in rows if (row.peer, row.what, row.tail) == (peer, what, tail))
            label = ", ".join(part for part in (peer, what if what == CALL else None, tail and f"{tail} tail") if part)
            if tail:  # beside the call without one, which the line before is
                axis.plot(*zip(*points), marker=".", markersize=4, linewidth=1, linestyle=TAIL_LINES[tail], color=color, label=label)
            elif len(points) == 1 and points[0][0] == 1.0:
                axis.axhline(points[0][1], label=label, linewidth=1, linestyle=":", color=axis._get_lines.get_next_color())
            else:
                color = axis.plot(*zip(*points), marker="o", markersize=4, label=label)[0].get_color()
        dense = [row.ms for row in rows if row.peer == CUDNN]
        if dense:
            shares = sorted({row.kept for row in rows})
            axis.plot(shares, [share * dense[0] for share in shares], "k--", linewidth=1, label="cuDNN dense × kept share")
        axis.set(xscale="log", yscale="log", title=name, xlabel="sparsity (share of blocks left out)", ylabel="ms")
        ticks = [0.02, 0.05, 0.1, 0.25, 1.0]
        axis.set_xticks(ticks, [f"{100 - 100 * tick:.0f} %" for tick in ticks])
        axis.minorticks_off()
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(f"{results.device}, forward, bf16")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--kept", nargs="+", type=float, default=KEPT, metavar="PERCENT")
    parser.add_argument("--only", nargs="+", choices=[key for key, _ in peers()], help="these peers alone")
    uneven = "a tenth of the rows keep ten times as many blocks as the others; above 19 %% those are full, and less is kept in all"
    parser.add_argument("--uneven", action="store_true", help=uneven)
    parser.add_argument("--quick", action="store_true", help="fewer calls of each")
    parser.add_argument("--seconds", type=int, default=300, help="begin no measurement after that long (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the measurements")
    parser.add_argument("--plot", metavar="FILE", help="write an SVG (needs matplotlib)")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing: show the measurements of another run")
    options = parser.parse_args()
    if wrong := [kept for kept in options.kept if not 0 < kept <= 100]:
        parser.error(f"--kept has {wrong}, needed shares above 0 and up to 100 percent")
    if options.from_json:
        with open(options.from_json) as file:
            results = Results(**json.load(file))
        results.rows = [Row(**row) for row in results.rows]
    elif torch.cuda.is_available():
        results = run(options)
    else:
        sys.exit("no GPU that PyTorch can use: run on one, or show measurements with --from-json FILE")
    # First the data: whatever fails after this can be done again.
    if options.json:
        with open(options.json, "w") as file:
            json.dump(asdict(results), file, indent=1)
    print(f"\n{render.peers(asdict(results))}\n")
    for reason in dict.fromkeys(results.missing.values()):
        print(f"missing: {'; '.join(who for who, why in results.missing.items() if why == reason)}: {reason}")
    if options.plot:
        try:
            plot(results, options.plot)
        except ImportError:
            print("no plot: matplotlib is not installed; --from-json draws it elsewhere")


if __name__ == "__main__":
    main()
