"""Draws docs/pictures/aspp.png: what each branch of ASPP looks at.

python docs/figures.py
"""

import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from keras_aspp.data.datasets.multiscale_shapes import draw_scene

OUTPUT = pathlib.Path(__file__).parent / "pictures" / "aspp.png"
SCENE = 12
OUTPUT_STRIDE = 16
RATES = (1, 2, 3)  # those of configs/multiscale_shapes.yaml
CELL = (4, 4)  # row and column of the cell that is being labelled


def taps(rate):
    """Cells that a 3x3 convolution of a rate looks at from `CELL`."""
    steps = (-rate, 0, rate)
    return [(CELL[0] + dy, CELL[1] + dx) for dy in steps for dx in steps]


def panel(axes, image, cells, title, color):
    """The picture, dimmed but where the branch looks."""
    seen = np.full(image.shape[:2], 0.3)
    s = OUTPUT_STRIDE
    for row, column in cells:
        seen[row * s : (row + 1) * s, column * s : (column + 1) * s] = 1
    axes.imshow((image / 255 * seen[..., None]).clip(0, 1))
    for row, column in cells:
        own = (row, column) == CELL
        axes.add_patch(
            Rectangle(
                (column * s - 0.5, row * s - 0.5),
                s,
                s,
                fill=False,
                edgecolor="white" if own else color,
                linewidth=2.2 if own else 1.6,
            )
        )
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def main():
    """Writes the figure."""
    image = draw_scene(np.random.default_rng([0, SCENE]))["image"]
    panels = [([CELL], "1x1: the cell itself", "white")]
    for rate, color in zip(
        RATES, ("#ffd166", "#06d6a0", "#ef476f"), strict=True
    ):
        reach = rate * OUTPUT_STRIDE
        panels.append(
            (taps(rate), f"3x3, rate {rate}: {reach} px apart", color)
        )
    figure, axes = plt.subplots(1, 5, figsize=(13, 3.1), layout="constrained")
    for ax, (where, title, color) in zip(axes[:4], panels, strict=True):
        panel(ax, image, where, title, color)
    axes[4].imshow(image)
    axes[4].set_title("image pooling: the whole picture", fontsize=10)
    axes[4].set_axis_off()
    figure.savefig(OUTPUT, dpi=90)


if __name__ == "__main__":
    main()
