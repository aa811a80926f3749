"""Draws the figures of the documentation into docs/images.

python docs/figures.py

Images are scenes that the package draws itself, and china.jpg. Figures of a
trained network use saved_models/camvid_mobilenet_v2.
"""

import pathlib

import keras
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from keras_aspp.analysis import (
    effective_receptive_field,
    feature_maps,
    receptive_fields,
)
from keras_aspp.data.datasets.multiscale_shapes import draw_scene
from keras_aspp.plots import explain, model_report
from keras_aspp.plots.figure import COLORS, new_figure
from keras_aspp.plots.figure import save as save_figure

ROOT = pathlib.Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MODEL = ROOT / "saved_models" / "camvid_mobilenet_v2" / "model.keras"
MOST_BYTES = 280_000  # of one figure
SCENE = 12
OUTPUT_STRIDE = 16
RATES = (1, 2, 3)  # those of configs/multiscale_shapes.yaml
CELL = (4, 4)  # row and column of the labeled cell


def save(figure, name):
    """Writes the PNG, in at most about `MOST_BYTES`."""
    path = save_figure(figure, IMAGES, name, formats=("png",), dpi=90)
    if path.stat().st_size > MOST_BYTES:
        # 256 colors, a third of the bytes.
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


def scene():
    """Draws a scene, uint8 `[H, W, 3]`."""
    return draw_scene(np.random.default_rng([0, SCENE]))["image"]


def china():
    """Reads a photograph, uint8 `[H, W, 3]`."""
    return np.asarray(Image.open(IMAGES / "china.jpg").convert("RGB"))


def taps(rate):
    """Returns the cells that a 3x3 convolution of a rate reads at `CELL`."""
    steps = (-rate, 0, rate)
    return [(CELL[0] + dy, CELL[1] + dx) for dy in steps for dx in steps]


def panel(axes, image, cells, title, color):
    """Draws the image, dimmed except for the cells that a branch reads."""
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


def aspp():
    """Draws the cells that each branch of ASPP reads."""
    image = scene()
    panels = [([CELL], "1x1: the cell itself", "white")]
    for rate, color in zip(
        RATES, ("#ffd166", "#06d6a0", "#ef476f"), strict=True
    ):
        reach = rate * OUTPUT_STRIDE
        panels.append(
            (taps(rate), f"3x3, rate {rate}: {reach} px apart", color)
        )
    figure, axes = new_figure(13, 3.1, columns=5)
    for ax, (where, title, color) in zip(axes[0, :4], panels, strict=True):
        panel(ax, image, where, title, color)
    axes[0, 4].imshow(image)
    axes[0, 4].set_title("image pooling: the whole image", fontsize=10)
    axes[0, 4].set_axis_off()
    return figure


def pooling():
    """Draws an image at the strides of a backbone."""
    image = scene().astype("float32")
    strides = (1, 4, 8, 16, 32)
    figure, axes = new_figure(13, 3.3, columns=len(strides))
    for ax, stride in zip(axes[0], strides, strict=True):
        pooled = keras.ops.average_pool(image[None], stride)
        pooled = np.asarray(pooled)[0].round().astype("uint8")
        ax.imshow(pooled, extent=(0, *image.shape[1::-1], 0))
        ax.set_title(
            f"stride {stride}: {pooled.shape[0]}x{pooled.shape[1]} cells",
            fontsize=10,
        )
        ax.set_axis_off()
    figure.suptitle(
        "What is left of an image when cells are averaged: small things go "
        "first, outlines next",
        fontsize=11,
    )
    return figure


def holes():
    """Draws kernels of three rates on a grid of cells."""
    rates, cells = (1, 2, 4), 11
    figure, axes = new_figure(9, 3.6, columns=3)
    for ax, rate, color in zip(axes[0], rates, COLORS, strict=False):
        middle = cells // 2
        for row, column in np.ndindex(cells, cells):
            tap = {row - middle, column - middle} <= {-rate, 0, rate}
            ax.add_patch(
                Rectangle(
                    (column, row),
                    1,
                    1,
                    facecolor=color if tap else "white",
                    edgecolor="#b8c0c6",
                )
            )
        ax.set_xlim(0, cells)
        ax.set_ylim(0, cells)
        ax.set_aspect("equal")
        ax.set_axis_off()
        span = 2 * rate + 1
        ax.set_title(f"rate {rate}: spans {span}x{span}", fontsize=10)
    figure.suptitle(
        "Nine weights each: holes widen the view and cost nothing", fontsize=11
    )
    return figure


def equality():
    """Plots a strided and an atrous computation of one signal."""
    rng = np.random.default_rng(3)
    signal = np.cumsum(rng.normal(0, 1, 65)) / 3
    first, second = np.array([1, 2, 1]) / 4, np.array([-1, 2, -1])
    strided = np.convolve(
        np.convolve(signal, first, "same")[::4], second, "same"
    )
    spread = np.zeros(9)
    spread[::4] = second  # the same three weights, three holes between
    dense = np.convolve(np.convolve(signal, first, "same"), spread, "same")
    np.testing.assert_allclose(dense[::4], strided, atol=1e-12)
    figure, axes = new_figure(10, 3.4)
    ax = axes[0, 0]
    ax.plot(
        dense,
        color=COLORS[0],
        linewidth=1.5,
        marker=".",
        label="atrous: no stride, then rate 4 (65 cells)",
    )
    ax.plot(
        np.arange(0, 65, 4),
        strided,
        color=COLORS[3],
        linestyle="none",
        marker="o",
        markersize=9,
        fillstyle="none",
        markeredgewidth=2,
        label="strided: stride 4, then rate 1 (17 cells)",
    )
    ax.set_title(
        "Every strided value is one of the dense ones: the same weights, "
        "computed at every cell",
        fontsize=11,
    )
    ax.set_xlabel("position")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return figure


def dense(model):
    """Draws strided and dense features of a photograph in a network."""
    image = china()
    found = feature_maps.strided_and_dense(
        model.backbone,
        np.asarray(model.preprocess(image)),
        model.input_scale,
    )
    channels = explain.channels_to_show(found["dense"])
    return explain.dense_figure(image, found, channels)


def dense_by_hand():
    """Draws the same with filters set by hand."""
    image = china()
    found = feature_maps.strided_and_dense(
        feature_maps.filter_bank(), image.astype("float32") / 255
    )
    return explain.dense_figure(
        image, found, (1, 2, 3), feature_maps.FILTERS[1:]
    )


def branches(model):
    """Draws the responses of the branches of a trained ASPP."""
    image = china()
    maps = feature_maps.branches_of(model, np.asarray(model.preprocess(image)))
    return explain.branches_figure(
        image, maps, "How strongly each branch of ASPP answers"
    )


def sizes():
    """Draws center minus surround at three rates, set by hand."""
    image = china()
    found = feature_maps.strided_and_dense(
        feature_maps.filter_bank(), image.astype("float32") / 255
    )
    maps = feature_maps.surroundings(found["dense"][..., 0])
    return explain.branches_figure(
        image,
        {f"{rate}: {8 * int(rate[5:])} px": m for rate, m in maps.items()},
        "A cell minus its eight neighbors: each rate answers to things of "
        "its own size",
    )


def effective(model):
    """Draws fields of a trained backbone, in pixels of the model's image."""
    size, keys = (513, 513), ("stride_8", "stride_16", "stride_32")
    backbone = model.backbone
    upsampled = model.get_layer("magnified").output
    features = keras.Model(model.input, backbone(upsampled))
    noise = np.random.default_rng(0).normal(size=(6, *size, 3))
    rows = {row.path: row for row in receptive_fields(features, size)}
    fields = {
        key: effective_receptive_field(features, noise, key) for key in keys
    }
    sizes = {}
    for key in keys:
        layer = backbone.output[key]._keras_history.operation.name
        sizes[key] = rows[f"{backbone.name}/{layer}"].size
    for key in keys:
        print(f"  {key}: {fields[key].side()} of {sizes[key][0]} px")
    return model_report.effective_figure(
        fields,
        sizes,
        "Pixels that move the central cell; white: 95 %, blue: theoretical",
    )


def main():
    """Writes every figure."""
    model = keras.saving.load_model(MODEL, compile=False)
    save(aspp(), "aspp")
    save(pooling(), "pooling")
    save(holes(), "holes")
    save(equality(), "equality")
    save(explain.kernel_figure(china(), (6, 12, 18), 16), "kernel")
    save(dense_by_hand(), "dense_by_hand")
    save(dense(model), "dense")
    save(sizes(), "sizes")
    save(branches(model), "branches")
    save(
        model_report.valid_taps_curves((65, 65), (6, 12, 18), most=80),
        "valid_taps",
    )
    stacks = [(rates, 3) for rates in ((2, 2, 2), (1, 2, 3), (1, 2, 5))]
    save(model_report.gridding_figure(stacks), "gridding")
    save(effective(model), "effective")


if __name__ == "__main__":
    main()
