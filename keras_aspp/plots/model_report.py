"""Figures of a model's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_aspp.analysis.effective import (
    EffectiveField,
    effective_receptive_field,
)
from keras_aspp.analysis.gridding import gridding, rates_text
from keras_aspp.analysis.taps import same_pads, valid_taps
from keras_aspp.analysis.trace import output_of
from keras_aspp.layers.checks import rate_pair, rate_text
from keras_aspp.plots.figure import COLORS, new_figure
from keras_aspp.utils.types import Rate, Size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EFFECTIVE_IMAGES = 4


def of_report(model: keras.Model, report: dict[str, Any]) -> dict[str, Figure]:
    """Draws all figures that apply to a report.

    Args:
        model: the `keras.Model` it is of.
        report: dict, see `analysis.report`.

    Returns:
        dict: name -> matplotlib `Figure`.
    """
    figures = {
        "receptive_fields": receptive_fields_figure(report),
        "cost": cost_figure(report),
    }
    if any(map(_has_curve, report["atrous"])):
        figures["valid_taps"] = valid_taps_figure(report)
    if report["gridding"]:
        rows = report["gridding"]
        ends = [row["dilated_end"] for row in rows if row["dilated_end"]]
        stacks = [(row["rates"], row["kernel_sizes"]) for row in rows + ends]
        figures["gridding"] = gridding_figure(_unique(stacks)[:3])
    effective = _effective_figure(model, report)
    if effective is not None:
        figures["effective_fields"] = effective
    return figures


def receptive_fields_figure(report: dict[str, Any]) -> Figure:
    """Draws receptive fields on the image and their growth by layer."""
    from matplotlib.patches import Rectangle

    figure, axes = new_figure(11, 4.6, columns=2)
    left, right = axes[0]
    height, width = report["image_size"]
    left.add_patch(
        Rectangle((0, 0), width, height, facecolor="#eef1f3", edgecolor="k")
    )
    stages = [s for s in report["stages"] if s["receptive_field"]]
    reach = max(height, width)
    for stage, color in zip(reversed(stages), _cycle(), strict=False):
        h, w = stage["receptive_field"]
        corner = (width - w) / 2, (height - h) / 2
        left.add_patch(
            Rectangle(corner, w, h, fill=False, edgecolor=color, linewidth=2)
        )
        label = f"{stage['name']}: {h}x{w} px"
        left.plot([], [], color=color, linewidth=2, label=label)
        reach = max(reach, h, w)
    left.set_xlim((width - reach) / 2 - 9, (width + reach) / 2 + 9)
    left.set_ylim((height + reach) / 2 + 9, (height - reach) / 2 - 9)
    left.set_aspect("equal")
    left.set_title(f"What one cell can see of a {height}x{width} image (gray)")
    left.set_xlabel("pixels")
    left.legend(
        fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13)
    )
    layers = [r for r in report["layers"] if r["receptive_field"]]
    sizes = [max(row["receptive_field"]) for row in layers]
    right.plot(np.maximum.accumulate(sizes), color=COLORS[0], linewidth=2)
    right.axhline(min(height, width), color="k", linestyle=":", linewidth=1)
    right.annotate(
        "shorter side of the image",
        (0, min(height, width)),
        xytext=(2, 4),
        textcoords="offset points",
        fontsize=8,
    )
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_title("The largest field so far, layer by layer")
    right.set_xlabel("layer, in the order of computation")
    right.set_ylabel("side in pixels")
    right.grid(alpha=0.3)
    return figure


def _has_curve(row):
    """Returns True for 3x3 kernels that keep the size of their map."""
    same = [list(pair) for pair in same_pads(row["rate"], 3)]
    return row["kernel_size"] == [3, 3] and row["pads"] == same


def valid_taps_figure(report: dict[str, Any]) -> Figure:
    """Draws figure 4 of DeepLabV3 for the map and rates of a model."""
    rows = [row for row in report["atrous"] if _has_curve(row)]
    cells = rows[-1]["map"]
    rates = _unique([[r["rate"]] for r in rows if r["map"] == cells])
    return valid_taps_curves(cells, [rate for (rate,) in rates])


def valid_taps_curves(
    size: Size, rates: Sequence[Rate] = (), most: int | None = None
) -> Figure:
    """Draws the shares of cells with 1, 4 and 9 valid taps by rate.

    Args:
        size: `(height, width)` of the map, in cells.
        rates: ints to mark; a pair `(height, width)` at each of its two.
        most: int, the largest rate shown; beyond the map if not given.
    """
    figure, axes = new_figure(8.6, 4.2)
    axes = axes[0, 0]
    rates = sorted({n for rate in rates for n in rate_pair(rate)})
    most = most or max(max(size) + max(size) // 8, max(rates, default=0) + 1)
    shown = np.arange(1, most + 1)
    counted = [valid_taps(int(rate), tuple(size)) for rate in shown]
    for taps, color in ((9, COLORS[0]), (4, COLORS[1]), (1, COLORS[3])):
        shares = [found.shares.get(taps, 0) for found in counted]
        label = f"{taps} valid tap{'s' if taps > 1 else ''}"
        axes.plot(shown, shares, color=color, linewidth=2, label=label)
    axes.plot(
        shown,
        [found.mean for found in counted],
        color="k",
        linestyle="--",
        linewidth=1,
        label="taps valid, on average",
    )
    for rate in rates:
        axes.axvline(rate, color="#888888", linewidth=1, linestyle=":")
        axes.annotate(
            f"{rate}",
            (rate, 1.0),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            annotation_clip=False,
        )
    height, width = size
    axes.set_title(
        f"The larger the rate, the fewer of 9 taps fall on a {height}x{width} "
        "map\n",
        fontsize=11,
    )
    axes.set_xlabel(
        "atrous rate, in cells" + ("; dotted: the model's" if rates else "")
    )
    axes.set_ylabel("share of the map's cells")
    axes.set_xlim(1, most)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _kernels_text(sizes):
    """Formats the kernel sizes of a stack, unless all are 3."""
    if set(sizes) == {3}:
        return ""
    return f", kernels {rates_text(sizes)}"


def gridding_figure(
    stacks: Sequence[tuple[Sequence[Rate], Sequence[int]]],
) -> Figure:
    """Draws the cells that stacks of convolutions read.

    Args:
        stacks: list of `(rates, kernel sizes)`; see `gridding`.
    """
    figure, axes = new_figure(3.6 * len(stacks), 4.1, columns=len(stacks))
    for ax, (rates, kernel_sizes) in zip(axes[0], stacks, strict=True):
        found = gridding(rates, kernel_sizes)
        pattern = np.outer(*(paths.astype(float) for paths in found.axes))
        pattern = np.where(
            pattern > 0, np.sqrt(pattern / pattern.max()), np.nan
        )
        ax.set_facecolor("#111111")
        ax.imshow(pattern, cmap="viridis", vmin=0, vmax=1)
        ax.set_title(
            f"rates {rates_text(rates)}{_kernels_text(found.kernel_sizes)}\n"
            f"{found.unseen_share:.0%} of "
            f"{rate_text(found.shape)} cells never seen",
            fontsize=10,
        )
        ax.set_xticks([])
        ax.set_yticks([])
    figure.suptitle(
        "Cells that reach the middle one; black: those that never do\n",
        fontsize=11,
    )
    return figure


def cost_figure(report: dict[str, Any]) -> Figure:
    """Draws parameters, multiply-adds and memory by part of a model."""
    parts = [
        part
        for part in report["parts"]
        if part["parameters"] or part["madds"] or part["activation_bytes"]
    ]
    figure, axes = new_figure(
        11, 1.3 + 0.32 * len(parts), columns=3, sharey=True
    )
    for ax, key, unit, color in zip(
        axes[0],
        ("parameters", "madds", "activation_bytes"),
        (
            "million parameters",
            "billion multiply-adds",
            "MB of activations",
        ),
        COLORS,
        strict=False,
    ):
        scale = 1e9 if key == "madds" else 1e6
        values = [part[key] / scale for part in parts]
        bars = ax.barh([part["name"] for part in parts], values, color=color)
        ax.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        ax.set_title(f"{sum(values):,.4g} {unit}", fontsize=10)
        ax.set_xlim(0, max(values) * 1.2 or 1)
        ax.grid(axis="x", alpha=0.3)
        ax.set_axisbelow(True)
    axes[0, 0].invert_yaxis()
    size = "x".join(map(str, report["image_size"]))
    figure.suptitle(f"Where the cost of a {size} image lies", fontsize=11)
    return figure


def effective_figure(
    fields: Mapping[str, EffectiveField], sizes: Mapping[str, Size], title: str
) -> Figure:
    """Draws effective fields within the theoretical ones.

    Args:
        fields: dict: name -> `EffectiveField`.
        sizes: dict: name -> `(height, width)` of the theoretical field.
        title: str.
    """
    from matplotlib.patches import Rectangle

    height, width = next(iter(fields.values())).map.shape
    figure, axes = new_figure(
        2.9 * len(fields), 2.9 * height / width + 1.2, columns=len(fields)
    )
    for ax, (name, field) in zip(axes[0], fields.items(), strict=True):
        shown = np.sqrt(field.map / field.map.max())
        ax.imshow(shown, cmap="magma", vmin=0, vmax=1)
        y, x = field.center
        side = field.side()
        height, width = sizes[name]
        for (h, w), color in (
            ((height, width), "#9fd8ff"),
            ((side, side), "w"),
        ):
            ax.add_patch(
                Rectangle(
                    (x - w / 2, y - h / 2), w, h, fill=False, edgecolor=color
                )
            )
        ax.set_title(
            f"{name}\n95 % within {side} px\ntheoretical {height}x{width} px",
            fontsize=9,
        )
        ax.set_xticks([])
        ax.set_yticks([])
    figure.suptitle(title, fontsize=11)
    return figure


def _effective_figure(model, report):
    import keras

    stages = [
        s for s in report["stages"] if s["receptive_field"] and s["stride"]
    ]
    part, name = model, report["backbone"]
    if name is not None:
        part = model.get_layer(name)
    output = output_of(part)
    keys = output if isinstance(output, dict) else ()
    shape = (
        EFFECTIVE_IMAGES,
        *report["image_size"],
        part.inputs[0].shape[-1],
    )
    noise = np.random.default_rng(0).normal(0, 1, shape).astype("float32")
    fields, sizes = {}, {}
    for stage in stages[-4:]:
        key = stage["name"]
        layer = key if key in keys else stage["layer"].split("/")[-1]
        known = key in keys or any(one.name == layer for one in part.layers)
        if known and keras.backend.backend() == "tensorflow":
            fields[key] = effective_receptive_field(part, noise, layer)
            sizes[key] = stage["receptive_field"]
    if not fields:
        return None
    return effective_figure(
        fields,
        sizes,
        "Pixels that move the central cell, by their gradients "
        f"({EFFECTIVE_IMAGES} images of noise); white: 95 %, blue: "
        "theoretical",
    )


def _cycle():
    while True:
        yield from COLORS


def _unique(items):
    return [item for i, item in enumerate(items) if item not in items[:i]]
