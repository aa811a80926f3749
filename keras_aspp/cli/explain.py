"""Command `keras-aspp explain`."""

from pathlib import Path

import numpy as np

from keras_aspp.cli.main import Parser
from keras_aspp.cli.output import print_table
from keras_aspp.utils.exceptions import InputError, InputNotFoundError

LONGEST_SIDE = 640
RATES = (6, 12, 18)
STRIDE = 16
EQUAL = 1e-3  # standard deviations that rounding explains


def run(arguments):
    """Draws the effect of atrous convolution on an image."""
    parser = Parser(
        prog="keras-aspp explain",
        description="Draw, on an image of yours: what a dilated kernel sees; "
        "feature maps of the same weights, strided and atrous; branches of "
        "ASPP or its like. Without --model, by filters set by hand.",
        allow_abbrev=False,
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--output", required=True, type=Path, help="folder")
    parser.add_argument(
        "--model",
        help="workdir, exported folder or .keras file; also hf://user/name",
    )
    flags = parser.parse_args(arguments)
    image = read_image_file(flags.image)
    figures, said = explain(image, flags.model)
    from keras_aspp.plots.figure import save
    from keras_aspp.utils.files import make_folder

    make_folder(flags.output)
    written = [
        (name, save(figure, flags.output, name))
        for name, figure in figures.items()
    ]
    print("\n".join(said))
    print()
    print_table(written)
    return 0


def read_image_file(path):
    """Reads an image as uint8 `[H, W, 3]`, at most `LONGEST_SIDE` long.

    Raises:
        FileNotFoundError, ValueError: there is none.
    """
    from keras_aspp.data.decode import read_image
    from keras_aspp.data.resize import resize_image

    if not Path(path).is_file():
        raise InputNotFoundError(f"No such image. File: {path}")
    image = read_image(path, exif=True)
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    return resize_image(
        image, [max(1, round(n * scale)) for n in image.shape[:2]]
    )


def explain(image, model_path=None):
    """Draws the figures of an image.

    Args:
        image: uint8 array `[H, W, 3]`.
        model_path: see `--model`, or `None`.

    Returns:
        `(figures, said)`: dict of name -> matplotlib `Figure`, and sentences
        to print.
    """
    if model_path is None:
        return _by_hand(image)
    from keras_aspp.inference.artefacts import resolve

    path = resolve(model_path, keras_only=True)
    if path.suffix != ".keras":
        raise InputError(
            "Feature maps are drawn of Keras models only, whose layers are "
            f"known. Received: --model {path}"
        )
    from keras_aspp.models.archive import load_keras
    from keras_aspp.models.segmenter import check_rgb
    from keras_aspp.utils.keras_graph import check_functional, graph_of

    model = load_keras(path)
    check_functional(model)
    model = graph_of(model)
    check_rgb(model, "`keras-aspp explain`")
    return _by_model(image, model)


def _by_hand(image):
    from keras_aspp.analysis import feature_maps
    from keras_aspp.plots import explain as plots

    found = feature_maps.strided_and_dense(
        feature_maps.filter_bank(), image.astype("float32") / 255
    )
    stride = found["strides"][1]
    maps = feature_maps.surroundings(found["dense"][..., 0])
    maps = {
        f"{name}: {int(name.split()[1]) * stride} px": values
        for name, values in maps.items()
    }
    figures = {
        "kernel": plots.kernel_figure(image, RATES, STRIDE),
        "dense": plots.dense_figure(
            image, found, range(1, 4), feature_maps.FILTERS[1:]
        ),
        "branches": plots.branches_figure(
            image,
            maps,
            "A cell minus its eight neighbors: each rate answers to things "
            "of its own size",
        ),
    }
    return figures, _sentences(image, found)


def _by_model(image, model):
    import keras

    from keras_aspp.analysis import feature_maps
    from keras_aspp.backbones.pyramid import stated_strides
    from keras_aspp.plots import explain as plots
    from keras_aspp.preprocess import Preprocess

    context = feature_maps.context_of(model)
    backbone = getattr(model, "backbone", None) or (
        keras.Model(model.input, context.input) if context else model
    )
    preprocess = getattr(model, "preprocess", None) or Preprocess()
    image, said = _in_size_of(model, image)
    inputs = np.asarray(preprocess(image), "float32")
    scale = getattr(model, "input_scale", 1)
    if scale > 1:
        said.append(
            f"the model upsamples images by {scale}; pixels below are those "
            "of the image"
        )
    rates = getattr(context or model, "atrous_rates", RATES)
    if hasattr(model, "atrous_stride"):
        stride = model.atrous_stride / scale
    else:
        stride = _stride_of(backbone, context) if context else STRIDE
    figures = {"kernel": plots.kernel_figure(image, rates, stride)}
    if stated_strides(backbone):
        said.append(
            "The backbone cannot be made dense and is used as it is, so its "
            "strided features are not drawn against dense ones."
        )
    else:
        found = feature_maps.strided_and_dense(backbone, inputs, scale)
        channels = plots.channels_to_show(found["dense"])
        figures["dense"] = plots.dense_figure(image, found, channels)
        said += _sentences(image, found)
    maps = feature_maps.branches_of(model, inputs)
    if maps:
        figures["branches"] = plots.branches_figure(
            image,
            maps,
            f"How strongly each branch of {type(context).__name__} answers",
        )
    else:
        said.append(
            "The model has no ASPP or other context layer, whose branches "
            "would be drawn."
        )
    return figures, said


def _in_size_of(model, image):
    """Resizes an image to the size of a model that takes no other.

    Returns:
        `(image, said)`.
    """
    from keras_aspp.data.resize import resize_image

    own, fixed = image.shape[:2], model.input.shape[1:-1]
    size = tuple(n or m for n, m in zip(fixed, own, strict=False))
    if size == own or len(fixed) != 2:
        return image, []
    return resize_image(image, size), [
        f"image {own[0]}x{own[1]} resized to {size[0]}x{size[1]}, the only "
        "size that the model takes"
    ]


def _stride_of(model, context):
    """Pixels per cell of the map that the context module of a model reads."""
    from keras_aspp.backbones.output_stride import tensor_strides

    return tensor_strides(model)[id(context.input)]


def _sentences(image, found):
    own, fine = found["strides"]
    step, off = found["step"], found["difference"]
    cells = f"dense cells in steps of {step}"
    if off < EQUAL:
        equal = f"{cells} are the strided ones: they differ by"
    else:
        equal = (
            "means over the whole map (squeeze-and-excite, group "
            f"normalization) change with its cells: {cells} differ from the "
            "strided ones by"
        )
    return [
        f"image {image.shape[0]}x{image.shape[1]}; features at stride {own:g} "
        f"and, with the same weights, at stride {fine:g}",
        f"{equal} at most {off:.1e} standard deviations",
    ]
