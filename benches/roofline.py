"""Our kernels against the roofs of the GPU: bytes and times from Nsight Compute, products counted from the mask.

    python3 benches/roofline.py --csv profile.csv --plot roofline.svg        # runs ncu, about a minute
    python3 benches/roofline.py --from-csv profile.csv --plot roofline.svg   # draws again, without a GPU

One launch of every kernel on the three workloads, 128×64 blocks, 5 % kept at random places, random bf16, clocks as they are. FLOP are
those that a kernel computes: 4 · heads · seq² · d · kept in the forward, 8 by key and 6 by query in the backward. A dot is drawn
for the bytes of the device memory and one for those of the L2 cache.
"""

import argparse
import csv
import io
import pathlib
import re
import shutil
import subprocess
import sys

# Products of seq × seq × d that a kernel computes for each head, of 2 FLOP an element.
PRODUCTS = {"forward": 2, "backward_kv": 4, "backward_q": 3}
KERNELS = ["pool", "rank", "transpose", "order", "forward", "backward_q", "backward_kv"]
KEPT = 0.05
SECTIONS = ["SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats"]
METRICS = "gpu__time_duration.sum,dram__bytes.sum,lts__t_bytes.sum,lts__t_sector_hit_rate.pct,smsp__inst_executed.sum"

# One H100 SXM, NVIDIA's data sheet; the L2 cache is what 1 056 blocks read from it (float4, a working set of 200 MB in the kernels' order).
PEAK_TFLOPS, DEVICE_TBS, L2_TBS = 989.0, 3.35, 7.8


def launch():
    """What ncu watches."""
    import torch
    from peer_kernels import WORKLOADS, Work, random_map

    import tilewright

    for name in WORKLOADS:
        work = Work(name, *WORKLOADS[name])
        mask = tilewright.BlockMask.from_dense(
            random_map(work, KEPT, False, (128, 64)), seq_lengths=(work.seq, work.seq)
        )
        leaves = [x.requires_grad_() for x in (work.q, work.k, work.v)]

        def step():
            with torch.no_grad():
                tilewright.block_mask(work.q, work.k, top_k=KEPT, top_p=KEPT)
            out = tilewright.attention(*leaves, mask)
            out.backward(work.q.detach())

        step()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        step()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def profile(path):
    ncu = shutil.which("ncu") or next(iter(sorted(pathlib.Path("/usr/local").glob("cuda*/bin/ncu"))), None)
    if ncu is None:
        sys.exit("ncu is not installed: it comes with the CUDA toolkit")
    command = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--profile-from-start", "off"]
    command += ["-k", "regex:" + "|".join(KERNELS), "--metrics", METRICS]
    command += [part for section in SECTIONS for part in ("--section", section)]
    done = subprocess.run([*command, sys.executable, __file__, "--launch"], capture_output=True, text=True)
    if done.returncode != 0 or '"ID"' not in done.stdout:
        sys.exit(f"ncu failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    pathlib.Path(path).write_text(done.stdout[done.stdout.index('"ID"') :])


def number(text):
    return float(text.replace(",", "")) if text else float("nan")


def rows(path):
    """A dict of metrics for each kernel that ran, with its workload. The workloads follow one another, each begins with `pool`."""
    from peer_kernels import WORKLOADS

    lines = list(csv.DictReader(io.StringIO(pathlib.Path(path).read_text())))[1:]  # the first holds units
    names, found = iter(WORKLOADS), []
    for line in lines:
        kernel = next(name for name in sorted(KERNELS, key=len, reverse=True) if name in line["Kernel Name"])
        if kernel == "pool":
            workload = next(names)
        heads, seq, d = WORKLOADS[workload]
        found.append({
            "workload": workload,
            "kernel": kernel,
            "flop": 2 * PRODUCTS.get(kernel, 0) * heads * seq * seq * d * KEPT,
            "seconds": number(line["gpu__time_duration.sum"]) * 1e-9,
            "device": number(line["dram__bytes.sum"]),
            "l2": number(line["lts__t_bytes.sum"]),
            "line": line,
        })
    return found


def table(found):
    print("| workload | kernel | µs | TFLOP/s | device memory, TB/s | L2, TB/s | L2 hits | tensor pipe | issue slots | stalls, cycles an instruction |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in found:
        line, seconds = row["line"], row["seconds"]
        tensor = max((number(value) for key, value in line.items() if re.search(r"pipe_tensor.*pct", key) and value), default=float("nan"))
        issue = next((number(value) for key, value in line.items() if re.search(r"issue_active.*pct|inst_issued.*pct", key) and value), float("nan"))
        stalls = {}
        for key, value in line.items():
            match = re.fullmatch(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_issue_active|_not_issued)?\.ratio", key)
            if match and value:
                stalls.setdefault(match[1], number(value))
        worst = sorted(stalls.items(), key=lambda item: -item[1])[:4]
        print(
            f"| {row['workload']} | {row['kernel']} | {seconds * 1e6:.0f} | {row['flop'] / seconds * 1e-12:.0f} "
            f"| {row['device'] / seconds * 1e-12:.2f} | {row['l2'] / seconds * 1e-12:.2f} | {number(line['lts__t_sector_hit_rate.pct']):.0f} % "
            f"| {tensor:.0f} % | {issue:.0f} % | {', '.join(f'{name} {cycles:.1f}' for name, cycles in worst)} |"
        )


def plot(found, path):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tilewright"  # equal figures, equal bytes
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.5, 5))
    intensity = [10, 10_000]
    for name, bandwidth, style in (("device memory", DEVICE_TBS, "k--"), ("L2 cache", L2_TBS, "k:")):
        axis.plot(
            [x / 10 for x in range(100, 100_000)],
            [min(PEAK_TFLOPS, bandwidth * x / 10) for x in range(100, 100_000)],
            style,
            linewidth=1,
            label=f"{PEAK_TFLOPS:.0f} TFLOP/s, {name} {bandwidth} TB/s",
        )
    for kernel, marker in (("forward", "o"), ("backward_kv", "s"), ("backward_q", "^")):
        for row in (row for row in found if row["kernel"] == kernel):
            rate = row["flop"] / row["seconds"] * 1e-12
            color = {"480p": "C0", "720p": "C1", "cogvideox": "C2"}[row["workload"]]
            label = f"{kernel}, {row['workload']}: {rate:.0f} TFLOP/s"
            axis.plot(row["flop"] / row["device"], rate, marker, color=color, label=label)
            axis.plot(row["flop"] / row["l2"], rate, marker, color=color, fillstyle="none")
    axis.set(xscale="log", yscale="log", xlim=intensity, ylim=[100, 1200], ylabel="TFLOP/s computed")
    axis.set_xlabel("FLOP a byte (filled: of the device memory, hollow: of the L2 cache)")
    axis.set_yticks([100, 200, 400, 600, 800, 1000], ["100", "200", "400", "600", "800", "1000"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", metavar="FILE", default="profile.csv", help="where ncu's figures go (default %(default)s)")
    parser.add_argument("--from-csv", metavar="FILE", help="profile nothing: show the figures of another run")
    parser.add_argument("--plot", metavar="FILE", help="write an SVG (needs matplotlib)")
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.launch:
        return launch()
    if not options.from_csv:
        profile(options.csv)
    found = rows(options.from_csv or options.csv)
    table(found)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
