"""The tables of the documents, made of the figures that are committed beside them.

    python3 benches/render.py            # writes them
    python3 benches/render.py --check    # fails where a document has another table than its figures give

A document has a table between `<!-- figures: NAME -->` and `<!-- end of figures -->`; `TABLES` says what makes it of which file of
docs/performance.
"""

import argparse
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "performance"
BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)

# The shares of key blocks that a table of errors has; the picture has them all.
SHARES = [0.02, 0.05, 0.1, 0.25]


def markdown(headings, rows):
    def line(cells):
        return f"| {' | '.join(cells)} |"

    return "\n".join([line(headings), "|" + "---|" * len(headings), *map(line, rows)])


def device_of(figures):
    return figures["device"].partition(" (cuda")[0]


# ---- benches/tails -------------------------------------------------------------------------------------------------


def tails_error(figures):
    """How far attention is off, by layer, order, share and tail."""
    where = "by the CPU executor" if device_of(figures) == "CPU" else f"on an {device_of(figures)}"
    names = [name_of(line["tail"]) for line in figures["panels"][0]["lines"]]
    rows = []
    for panel in figures["panels"]:
        for points in zip(*(line["points"] for line in panel["lines"])):
            if points[0]["top_k"] not in SHARES:
                continue
            errors = [f"{point['error']:.3f}" for point in points]
            errors = [f"**{error}**" if error == min(errors) else error for error in errors]
            rows.append([panel["name"], panel["order"], f"{points[0]['top_k']:g}", f"{100 * points[0]['kept']:.1f} %", *errors])
    said = f"On q, k and v of a video transformer that was not trained for a mask, in bf16 {where}:\n\n"
    return said + markdown(["layer", "order", "top-k", "kept", *names], rows)


def name_of(tail):
    """A tail, and what blocks are scored by where it is not their means."""
    tail, comma, scores = tail.partition(", ")
    name = {"none": "no tail", "block": "block"}.get(tail, f"{tail.replace('row', 'row,')} keys")
    return name + comma + scores


# ---- benches/attention --tails -------------------------------------------------------------------------------------


def tails_said(figures):
    block_q, block_kv = figures["block"]
    return (
        f"{device_of(figures)}, driver of CUDA {figures['driver']}: random bf16 data, blocks of {block_q}×{block_kv}, top-k {figures['top_k']:g}, all tails by "
        f"turns (`cargo bench --bench attention -- --tails`). Medians of {figures['rounds']} medians of {figures['launches']} calls"
    )


def tails_times(figures, cell):
    workloads = figures["workloads"]
    rows = []
    for what, key in (("a user's call", "call"), ("backward", "backward")):
        for tails in zip(*(work["tails"] for work in workloads)):
            plain = [work["tails"][0][key]["ms"] for work in workloads]
            rows.append([what, name_of(tails[0]["tail"]), *(cell(tail[key], tail[key]["ms"] / ms) for tail, ms in zip(tails, plain))])
    sizes = [f"{work['name']} ({work['heads']} × {work['seq']:,} × {work['d']})".replace(",", " ") for work in workloads]
    return markdown(["", "tail", *sizes], rows)


def tails_cost(figures):
    """What a call and a backward take, and how many times as long as without a tail."""
    return f"{tails_said(figures)}, and how many times as long they are as without a tail:\n\n" + tails_times(
        figures, lambda times, ratio: f"{times['ms']:.3f} ms ({ratio:.2f}×)"
    )


def tails_results(figures):
    """The same with ranges, and the kernels one by one."""
    times = tails_times(figures, lambda times, ratio: f"{times['ms']:.3f} ms, {times['least_ms']:.3f} to {times['most_ms']:.3f} ({ratio:.2f}×)")
    names = [name_of(tail["tail"]) for tail in figures["workloads"][0]["tails"]]
    rows = []
    for key in ("call_parts", "backward_parts"):
        of = [[summed(tail[key]) for tail in work["tails"]] for work in figures["workloads"]]
        for kernel in dict.fromkeys(kernel for tails in of for parts in tails for kernel in parts):
            cells = [[parts.get(kernel) for parts in tails] for tails in zip(*of)]
            rows.append([f"`{kernel}`", *(" / ".join("–" if us is None else f"{us:.1f}" for us in cell) if any(cell) else "" for cell in cells)])
    order = " / ".join(work["name"] for work in figures["workloads"])
    parts = markdown(["kernel", *names], rows)
    return f"{tails_said(figures)}.\n\n{times}\n\nThe kernels that had a choice, in µs as the tuner measured the picks ({order}):\n\n{parts}"


def summed(parts):
    """µs by kernel."""
    sums = {}
    for part in parts:
        if part["us"] is not None:
            kernel = part["kernel"].split()[0]
            sums[kernel] = sums.get(kernel, 0) + part["us"]
    return sums


# ---- benches/peers.py ----------------------------------------------------------------------------------------------


def peers(results):
    """A table for each workload: peers down, kept shares across."""
    tables = []
    for name in dict.fromkeys(row["workload"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["workload"] == name]
        shares = sorted({share_of(row) for row in rows}, key=float)
        lines = {}
        for row in rows:
            lines.setdefault(line_of(row), {})[share_of(row)] = peers_cell(row)
        body = [[label, *(cells.get(share, "") for share in shares)] for label, cells in lines.items()]
        tables.append(markdown([name, *(f"{share} %" for share in shares)], body))
    return "\n\n".join(tables)


def share_of(row):
    return f"{100 * row['kept']:.0f}"


def line_of(row):
    tail = f", {row['tail']} tail" if row.get("tail") else ""
    return f"{row['peer']}, {row['what']}{tail}"


def peers_cell(row):
    details = [f"{row['tflops']:.0f} TF/s"] if row["tflops"] else []
    details += [f"{row['ratio']:.1f}×"] if row["ratio"] else []
    return f"{row['ms']:.3f} ms" + (f" ({', '.join(details)})" if details else "")


# ---- documents -----------------------------------------------------------------------------------------------------

# ---- python/benches/end_to_end.py ----------------------------------------------------------------------------------


def end_to_end(figures):
    """A denoising step, dense and sparse, eager and compiled, with what it is of the dense step compiled."""
    models = figures["models"].values()
    rows = []
    for what in next(iter(models))["rows"]:
        cells = []
        for model in models:
            row, dense = model["rows"][what], model["rows"]["dense, compiled by blocks"]
            time = f"{row['ms']:.0f} ms" if row["ms"] < 1000 else f"{row['ms'] / 1000:.2f} s"
            cells.append(f"{time} ({dense['ms'] / row['ms']:.2f}×)")
        *attention, how = what.split(", ")
        graphs = max(model["rows"][what]["graphs"] for model in models)
        rows.append([", ".join(attention), how, *cells, str(graphs)])
    said = (
        f"{device_of(figures)}, PyTorch {figures['torch'].partition('+')[0]}, diffusers {figures['diffusers']}: one step (one pass of the model) with random "
        f"weights, {100 * figures['top_k']:g} % of the blocks by top-k, the median; in brackets how many times as fast as dense attention (cuDNN), compiled by "
        "blocks (`python python/benches/end_to_end.py`).\n\n"
    )
    return said + markdown(["attention", "model", *(model["title"] for model in models), "graphs"], rows)


TABLES = {
    "tails-error": ("tails-error.json", tails_error),
    "tails-cost": ("tails-cost.json", tails_cost),
    "tails-results": ("tails-cost.json", tails_results),
    "peers": ("peers.json", peers),
    "end-to-end": ("end-to-end.json", end_to_end),
}


def rendered(text):
    def table(block):
        file, make = TABLES[block[2]]
        return f"{block[1]}{make(json.loads((FIGURES / file).read_text()))}\n{block[3]}"

    return BLOCK.sub(table, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is not what its figures give")
    options = parser.parse_args()
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benches").glob("*.md"))]:
        text = path.read_text()
        new = rendered(text)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not options.check:
                path.write_text(new)
    if options.check and stale:
        sys.exit(f"tables of {', '.join(stale)} are not those of the figures: run python3 benches/render.py")
    for path in stale:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
