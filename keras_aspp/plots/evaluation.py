"""Figures of evaluation and of the learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.metrics import BinaryCurve, Calibration
from keras_aspp.plots.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Shares below this are not written into the matrix.
SHOWN = 0.005
# Inches and points of a cell; with more classes than FEW a smaller one, so
# that the figure still fits a screen.
FEW, CELL, SMALL_CELL = 20, (0.5, 8), (0.3, 6)


def confusion_figure(matrix: np.ndarray, spec: DatasetSpec) -> Figure:
    """Draws the confusion matrix as shares of labeled pixels.

    Classes that occur neither in labels nor in predictions are left out; the
    others are sorted by their labeled pixels, the most frequent first.

    Args:
        matrix: int `(K, K)`, rows are labels.
        spec: `DatasetSpec`.

    Returns:
        matplotlib `Figure`.
    """
    shown = _occurring(matrix)
    names = [str(spec.class_names[i]) for i in shown]
    matrix = matrix[np.ix_(shown, shown)]
    labeled = matrix.sum(1)
    shares = matrix / np.maximum(labeled, 1)[:, None]
    cell, points = CELL if len(shown) <= FEW else SMALL_CELL
    side = 2.6 + cell * len(shown)
    figure, axes = new_figure(side + 1, side)
    axes = axes[0, 0]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    numbers = range(len(shown))
    axes.set_xticks(numbers, names, rotation=60, ha="right", fontsize=points)
    total = max(matrix.sum(), 1)
    rows = [
        f"{name}  ({100 * n / total:.2g} %)"
        for name, n in zip(names, labeled, strict=True)
    ]
    axes.set_yticks(numbers, rows, fontsize=points)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labeled (share of all pixels)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (i, j), share in np.ndenumerate(shares):
        if share >= SHOWN:
            axes.text(
                j,
                i,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=points,
                color="white" if share > 0.5 else "0.25",
            )
    title = "Percent of the pixels labeled so"
    left_out = spec.num_classes - len(shown)
    if left_out:
        title += f"\n{left_out} classes that do not occur are left out"
    axes.set_title(title, fontsize=10)
    return figure


def _occurring(matrix):
    """Returns classes that occur, by labeled, then by predicted pixels."""
    labeled, predicted = matrix.sum(1), matrix.sum(0)
    order = np.lexsort((np.arange(len(matrix)), -predicted, -labeled))
    occurs = (labeled + predicted) > 0
    return order[occurs[order]] if occurs.any() else order


def reliability_figure(calibration: Calibration) -> Figure:
    """Draws accuracy over confidence, with a histogram of confidence.

    Args:
        calibration: `Calibration`.

    Returns:
        matplotlib `Figure`.
    """
    rows = calibration.histogram()
    edges = np.linspace(0, 1, len(rows) + 1)
    accuracy = [row["accuracy"] or 0.0 for row in rows]
    pixels = np.array([row["pixels"] for row in rows])
    figure, axes = new_figure(5.2, 6.2, rows=2, height_ratios=(3, 1))
    upper, lower = axes[:, 0]
    arguments = {"align": "edge", "edgecolor": "white", "width": 1 / len(rows)}
    upper.bar(edges[:-1], accuracy, color=COLORS[0], **arguments)
    upper.plot([0, 1], [0, 1], color=COLORS[3], linestyle="--")
    upper.text(0.03, 0.93, "dashed: as often right as it says", color=COLORS[3])
    upper.set_ylabel("share that is right")
    upper.set_ylim(0, 1)
    upper.set_title(
        f"Expected calibration error {calibration.error():.4f}", fontsize=10
    )
    share = pixels / max(pixels.sum(), 1)
    lower.bar(edges[:-1], 100 * share, color=COLORS[5], **arguments)
    lower.set_ylabel("% of pixels")
    lower.set_xlabel("confidence")
    for part in (upper, lower):
        part.set_xlim(0, 1)
        part.spines[["top", "right"]].set_visible(False)
    return figure


def precision_recall_figure(
    curve: BinaryCurve, name: str, threshold: float | None = None
) -> Figure:
    """Draws precision over recall of an object, with its best threshold.

    Args:
        curve: `BinaryCurve`.
        name: str, name of the object.
        threshold: float in [0, 1), the threshold in use, marked too, or
            `None`.

    Returns:
        matplotlib `Figure`.
    """
    figure, axes = new_figure(5.2, 5)
    axes = axes[0, 0]
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if math.isnan(curve.average_precision()):
        axes.set_title(f"{name} never occurs in the labels", fontsize=10)
        return figure
    recall, precision, f1 = curve.recall(), curve.precision(), curve.f1()
    axes.plot(recall, precision, color=COLORS[0], linewidth=2)
    marks = [("best", curve.best_threshold(), COLORS[3])]
    if threshold is not None:
        marks.append(("in use", threshold, COLORS[5]))
    for text, value, color in marks:
        i = int(np.abs(curve.thresholds - value).argmin())
        axes.scatter(
            recall[i : i + 1],
            precision[i : i + 1],
            color=color,
            zorder=3,
            label=f"{text}: threshold {value:.3f}, F1 {f1[i]:.3f}",
        )
    axes.legend(loc="lower left", fontsize=8)
    axes.set_title(
        f"{name}: average precision {curve.average_precision():.4f}",
        fontsize=10,
    )
    return figure


def range_test_figure(
    rates: Sequence[float], losses: Sequence[float], suggested: float | None
) -> Figure:
    """Draws the loss over the learning rate of a range test."""
    figure, axes = new_figure(6.4, 4)
    axes = axes[0, 0]
    axes.plot(rates, losses, color="#118ab2", linewidth=2)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, smoothed")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if suggested is not None:
        axes.axvline(suggested, color="#ef476f", linewidth=1.5)
        axes.annotate(
            f"falls fastest: {suggested:.2g}",
            (suggested, max(losses)),
            xytext=(6, -4),
            textcoords="offset points",
            va="top",
            color="#ef476f",
        )
    return figure
