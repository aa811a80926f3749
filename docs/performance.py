"""Writes the tables and figures of docs/performance.md.

    python docs/performance.py

They are read from benchmarks/results, which `benchmarks/run.py` writes.
"""

import json
import pathlib
import re
import sys

from matplotlib.figure import Figure

from keras_aspp.plots.figure import save as save_figure

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.workloads import COMPARISONS  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
OURS, OTHER = "#0f7fa8", "#9aa5ad"


def load():
    """Reads all results: dict of name of the comparison -> result."""
    found = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
    return {result["comparison"]: result for result in found}


def seconds(side):
    """Formats median and range."""
    low, high = min(side["seconds"]), max(side["seconds"])
    digits = 2 if high >= 0.1 else 4
    return (
        f"{side['median_seconds']:.{digits}f} s "
        f"({low:.{digits}f}-{high:.{digits}f})"
    )


def gib(side):
    """Formats peak memory."""
    return f"{side['peak_bytes'] / 2**30:.2f} GiB"


def run(result):
    """Formats date and commit."""
    return f"{result['date'][5:]}, {result['commit']}"


def targets(results, names):
    """Yields the lines of a table of targets."""
    yield "| work | side | takes | beside | takes | ratio | target | | run |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in names:
        result = results[name]
        for t in result["targets"]:
            ours, other = (result["sides"][t[k]] for k in ("side", "other"))
            show = gib if t["of"] == "peak_bytes" else seconds
            yield (
                f"| `{name}` | {t['side']} | {show(ours)} | {t['other']} | "
                f"{show(other)} | {t['measured']:.2f} | {t['at_most']:.2f} | "
                f"{'met' if t['met'] else '**missed**'} | {run(result)} |"
            )


def sides(results, names):
    """Yields the lines of a table of times without targets."""
    yield "| work | side | takes | run |"
    yield "|---|---|---|---|"
    for name in names:
        for label, side in results[name]["sides"].items():
            yield (
                f"| `{name}` | {label} | {seconds(side)} "
                f"| {run(results[name])} |"
            )


def rates(results, names):
    """Yields the lines of the table of arithmetic per second."""
    yield "| work | side | GFLOP | GFLOP/s | of the ceiling | first step |"
    yield "|---|---|---|---|---|---|"
    ceiling = {
        dtype: side["gflop_per_second"]
        for dtype, side in results["ceiling"]["sides"].items()
    }
    for name in names:
        for label, side in results[name]["sides"].items():
            if "gflop_per_second" not in side:
                continue
            short = "bfloat16" in f"{name} {label}" and "float32" not in label
            share = (
                side["gflop_per_second"]
                / ceiling["bfloat16" if short else "float32"]
            )
            yield (
                f"| `{name}` | {label} | {2e-9 * side['madds']:.0f} | "
                f"{side['gflop_per_second']:.0f} | {share:.0%} | "
                f"{side['first_step_seconds']:.1f} s |"
            )


def growth(results, names):
    """Yields the lines of the table of growth."""
    yield "| grows | to | takes | peak memory | arithmetic | time | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        sides = results[name]["sides"]
        first = next(iter(sides.values()))
        for label, side in sides.items():
            work = side["madds"] / first["madds"]
            time = side["median_seconds"] / first["median_seconds"]
            yield (
                f"| {name.removeprefix('growth_').replace('_', ' ')} | {label} "
                f"| {seconds(side)} | {gib(side)} | {work:.2f}x | {time:.2f}x "
                f"| {time / work:.2f} |"
            )


def save(figure, name, dpi):
    """Writes the PNG."""
    folder = PAGE.parent / "images"
    save_figure(figure, folder, name, formats=("png",), dpi=dpi)


def draw_ratios(results, names):
    """Draws ratios of ours to the others as bars, with the targets."""
    bars = []
    for name in names:
        for t in results[name]["targets"]:
            kind = "memory" if t["of"] == "peak_bytes" else "time"
            bars.append((f"{name}: {t['side']} / {t['other']}, {kind}", t))
    figure = Figure(figsize=(9, 0.32 * len(bars) + 0.8), layout="constrained")
    axes = figure.subplots()
    for y, (_, t) in enumerate(bars):
        axes.barh(y, t["measured"], color=OURS, height=0.6)
        axes.plot([t["at_most"]] * 2, [y - 0.4, y + 0.4], color="black", lw=2)
        right = max(t["measured"], t["at_most"]) + 0.02
        axes.text(
            right,
            y,
            f"{t['measured']:.2f}",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.axvline(1, color=OTHER, lw=1, zorder=0)
    axes.margins(x=0.08)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        "share of what the other takes; the black line is the target"
    )
    save(figure, "performance_ratios", dpi=110)


def draw_growth(results, names):
    """Plots time and memory against the quantity that grows."""
    figure = Figure(figsize=(3 * len(names), 4.6), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        sides = results[name]["sides"]
        x = range(len(sides))
        first = next(iter(sides.values()))
        work = [
            first["median_seconds"] * s["madds"] / first["madds"]
            for s in sides.values()
        ]
        axes, memory = grid[:, column]
        axes.plot(x, work, "--", color=OTHER, label="as the arithmetic")
        axes.set_title(name.removeprefix("growth_").replace("_", " "))
        lines = [(sides, "o-", OURS, "measured")]
        again = results.get("growth_batch_rematerialized")
        if name == "growth_batch" and again:
            lines.append((again["sides"], "s-", "#d1741f", "rematerialized"))
        for shown, mark, color, label in lines:
            style = {"color": color, "label": label}
            time = [s["median_seconds"] for s in shown.values()]
            axes.plot(x, time, mark, **style)
            held = [s["peak_bytes"] / 2**30 for s in shown.values()]
            memory.plot(x, held, mark, **style)
        for a in (axes, memory):
            a.set_xticks(x, list(sides))
            a.set_ylim(0, 1.1 * a.get_ylim()[1])
        if column == 0:
            axes.set_ylabel("seconds a step")
            memory.set_ylabel("peak memory, GiB")
        if name in ("growth_size", "growth_batch"):
            axes.legend(fontsize=8)
    save(figure, "performance_growth", dpi=90)


def main():
    """Writes the tables and figures."""
    results = load()
    compared = [
        n
        for n in COMPARISONS
        if n in results
        and results[n]["targets"]
        and not n.startswith(("form_", "gpu_", "tflite_"))
    ]
    forms = [n for n in results if n.startswith("form_")]
    grown = [n for n in COMPARISONS if n in results and n[:7] == "growth_"]
    counted = [
        n
        for n in (
            "train_step",
            "train_step_bfloat16",
            "train_step_xla",
            "inference",
            "pytorch",
            "pytorch_bfloat16",
            "xla_mobilenet",
        )
        if n in results
    ]
    lite = [n for n in COMPARISONS if n in results and n[:7] == "tflite_"]
    phones = [n for n in COMPARISONS if n in results and n[:6] == "phone_"]
    tables = {
        "targets": targets(results, compared),
        "lite": targets(results, lite),
        "phones": sides(results, phones),
        "rates": rates(results, counted),
        "forms": targets(results, forms),
        "growth": growth(results, grown),
    }
    page = PAGE.read_text()
    for name, lines in tables.items():
        text = "".join(f"{line}\n" for line in lines)
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, text=text: found[1] + text + found[2],
            page,
            flags=re.S,
        )
    PAGE.write_text(page)
    draw_ratios(results, compared)
    draw_growth(
        results, [n for n in grown if n != "growth_batch_rematerialized"]
    )


if __name__ == "__main__":
    main()
