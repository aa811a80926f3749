"""Figures of one style, written as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_aspp.utils.files import replacing
from keras_aspp.utils.types import PathLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#118ab2", "#06d6a0", "#e0a100", "#ef476f", "#7b4fb5", "#5f6b73")


def save(
    figure: Figure,
    folder: PathLike,
    name: str,
    formats: Sequence[str] = ("png", "svg"),
    dpi: int = 110,
) -> Path:
    """Writes a figure, each file whole or not at all.

    Args:
        figure: matplotlib `Figure`.
        folder: that exists.
        name: of the files, without suffix.
        formats: of `"png"`, `"svg"`.
        dpi: int, dots per inch of a PNG.

    Returns:
        `Path` of the first file.
    """
    folder = Path(folder)
    for suffix in formats:
        metadata = {"Date": None} if suffix == "svg" else {}
        with replacing(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(
                temporary,
                format=suffix,
                dpi=dpi,
                metadata=metadata,
                bbox_inches="tight",
            )
    return folder / f"{name}.{formats[0]}"


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """Creates a figure outside of pyplot, and its axes.

    Returns:
        `(figure, axes)`, axes as an array `(rows, columns)`.
    """
    # pyplot would keep every figure, and open windows where it can.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)
