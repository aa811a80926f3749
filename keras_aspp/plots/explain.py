"""Figures of `keras-aspp explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_aspp.layers.checks import rate_pair, rate_text
from keras_aspp.plots.figure import COLORS, new_figure
from keras_aspp.utils.types import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def kernel_figure(
    image: np.ndarray, rates: Sequence[Rate], stride: float
) -> Figure:
    """Draws the taps of 3x3 kernels on an image.

    Args:
        image: uint8 array `(height, width, 3)`.
        rates: ints > 0 or pairs `(height, width)`, in cells; shown beside
            rate 1, four at most.
        stride: int or float > 0, pixels per cell.
    """
    from matplotlib.patches import Rectangle

    rates = sorted({1, *rates}, key=rate_pair)[:4]
    height, width = image.shape[:2]
    middle = height // stride // 2, width // stride // 2  # in cells
    reach = max(max(rate_pair(rate)) for rate in rates) * stride
    figure, axes = new_figure(
        3.1 * len(rates),
        3.1 * max(height, 2 * reach) / max(width, 2 * reach) + 1.1,
        columns=len(rates),
    )
    for ax, rate, color in zip(axes[0], rates, COLORS, strict=False):
        ax.imshow(image, alpha=0.55)
        outside = 0
        rows, columns = rate_pair(rate)
        for dy, dx in np.ndindex(3, 3):
            y = (middle[0] + (dy - 1) * rows) * stride
            x = (middle[1] + (dx - 1) * columns) * stride
            on_map = 0 <= y < height and 0 <= x < width
            outside += not on_map
            ax.add_patch(
                Rectangle(
                    (x, y),
                    stride,
                    stride,
                    facecolor=color if on_map else "none",
                    edgecolor="k" if on_map else "#999999",
                    linestyle="-" if on_map else ":",
                )
            )
        apart = [f"{n * stride:g}" for n in (rows, columns)]
        apart = "x".join(apart if rows != columns else apart[:1])
        lost = f"{outside} of 9 taps on padding" if outside else "9 taps"
        ax.set_title(
            f"rate {rate_text(rate)}: {apart} px apart\n{lost}", fontsize=10
        )
        ax.set_xlim(
            min(0, middle[1] * stride - reach) - 4,
            max(width, middle[1] * stride + reach + stride) + 4,
        )
        ax.set_ylim(
            max(height, middle[0] * stride + reach + stride) + 4,
            min(0, middle[0] * stride - reach) - 4,
        )
        ax.set_axis_off()
    figure.suptitle(
        f"The nine cells of {stride:g}x{stride:g} pixels that a 3x3 kernel "
        "multiplies: a rate moves them apart, their number stays",
        fontsize=11,
    )
    return figure


def dense_figure(
    image: np.ndarray,
    found: dict[str, Any],
    channels: Sequence[int],
    names: Sequence[str] | None = None,
) -> Figure:
    """Draws an image, its strided features above, its dense ones below.

    Args:
        image: uint8 array `(height, width, 3)`.
        found: dict, see `strided_and_dense`.
        channels: ints, which to show.
        names: str of each, or `None` for their numbers.
    """
    names = names or [f"channel {channel}" for channel in channels]
    height, width = image.shape[:2]
    count = 1 + len(channels)
    figure, axes = new_figure(
        3.1 * count, 6.2 * height / width + 1.3, rows=2, columns=count
    )
    for row, name in enumerate(("strided", "dense")):
        stride, maps = found["strides"][row], found[name]
        ax = axes[row, 0]
        ax.imshow(image)
        # Thin lines, so that small cells show the image between them.
        width_pt = min(0.6, 0.075 * stride)
        lines = {"color": "w", "linewidth": width_pt, "alpha": 0.8}
        for y in np.arange(0, height, stride):
            ax.axhline(y, **lines)
        for x in np.arange(0, width, stride):
            ax.axvline(x, **lines)
        ax.set_title(
            f"{name}: {maps.shape[0]}x{maps.shape[1]} cells of {stride:g} px",
            fontsize=10,
        )
        ax.set_axis_off()
        for ax, channel, name in zip(
            axes[row, 1:], channels, names, strict=True
        ):
            # Zero padding makes a rim that would outshine the rest.
            low, high = np.percentile(found["dense"][..., channel], (2, 98))
            ax.imshow(
                maps[..., channel],
                cmap="magma",
                vmin=low,
                vmax=high,
                extent=(0, maps.shape[1] * stride, maps.shape[0] * stride, 0),
            )
            ax.set_xlim(0, width)
            ax.set_ylim(height, 0)
            ax.set_title(name, fontsize=10)
            ax.set_axis_off()
    figure.suptitle(
        "The same weights: strides throw cells away, atrous convolution "
        "computes them all",
        fontsize=11,
    )
    return figure


def branches_figure(
    image: np.ndarray, maps: Mapping[str, np.ndarray], title: str
) -> Figure:
    """Draws an image and the response of each branch, scaled separately.

    Args:
        image: uint8 array `(height, width, 3)`.
        maps: dict: title -> float array `(h, w)`.
        title: str.
    """
    height, width = image.shape[:2]
    count = 1 + len(maps)
    columns = count if count <= 4 else -(-count // 2)
    rows = -(-count // columns)
    figure, axes = new_figure(
        3.1 * columns,
        (3.1 * height / width + 0.3) * rows + 0.6,
        rows=rows,
        columns=columns,
    )
    for ax in axes.flat:
        ax.set_axis_off()
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image", fontsize=10)
    for ax, (name, values) in zip(axes.flat[1:], maps.items(), strict=False):
        flat = np.ptp(values) <= 1e-4 * np.abs(values).max()
        # A flat map's noise must not be stretched to a pattern.
        limits = {"vmin": 0, "vmax": 2 * values.max()} if flat else {}
        ax.imshow(values, cmap="magma", extent=(0, width, height, 0), **limits)
        note = ": one value for all" if flat else ""
        ax.set_title(name + note, fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def channels_to_show(features: np.ndarray, count: int = 3) -> list[int]:
    """Returns the channels of largest variation, in falling order."""
    spread = features.reshape(-1, features.shape[-1]).std(axis=0)
    return np.argsort(spread)[::-1][:count].tolist()
