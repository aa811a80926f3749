"""Figures of an evaluation: confusion matrix, confidences."""

import numpy as np

from keras_aspp.analysis.figures import COLORS, new_figure

# Shares below this are not written into the matrix.
SHOWN = 0.005


def confusion_figure(matrix, spec):
    """Where the pixels of each class go, as shares of its labelled pixels.

    Args:
        matrix: int `(K, K)`, rows are labels.
        spec: `DatasetSpec`.

    Returns:
        matplotlib `Figure`.
    """
    labelled = matrix.sum(1, keepdims=True)
    shares = matrix / np.maximum(labelled, 1)
    side = 2.6 + 0.5 * spec.num_classes
    figure, axes = new_figure(side + 1, side)
    axes = axes[0, 0]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [str(name) for name in spec.class_names]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    everything = max(matrix.sum(), 1)
    rows = [
        f"{name}  ({100 * n / everything:.1f} %)"
        for name, n in zip(names, labelled[:, 0], strict=True)
    ]
    axes.set_yticks(range(len(names)), rows)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled (share of all pixels)")
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
                fontsize=8,
                color="white" if share > 0.5 else "0.25",
            )
    axes.set_title("Per cent of the pixels labelled so", fontsize=10)
    return figure


def reliability_figure(calibration):
    """Accuracy over confidence, and how often each confidence occurs.

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
