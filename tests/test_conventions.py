"""The conventions of the design, each by one test."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import ROOT, npy, sample
from mutants import mirrored_module

import keras_aspp as ka

PACKAGE = pathlib.Path(ka.__file__).parent
TESTS = ROOT / "tests"
# The parts from the ground up: each imports only rungs below its own, which
# also rules out circles between parts. Those of one rung do not know each
# other.
LADDER = (
    ("version",),
    ("utils",),
    ("context_modules", "litert", "labels", "label_tensors", "pixels"),
    ("layers", "losses", "metrics"),
    ("preprocess",),
    ("data",),
    ("config",),
    ("backbones",),
    ("models",),
    ("analysis", "weights"),
    ("plots",),
    ("annotations",),
    ("inference",),
    ("engine", "export"),
    ("workdir",),
    ("cli",),
    ("__main__",),
)
BACKEND_FREE = (
    "layers",
    "backbones",
    "models",
    "metrics",
    "losses",
    "context_modules",
    "labels",
    "label_tensors",
)
# Modules without a test file of their own, by folder. The list only shrinks.
UNMIRRORED = {
    "": "__main__ label_tensors labels version",
    "annotations": (
        "coco cvat_xml json_stream label_images readers reading shapes source"
    ),
    "backbones": "grids padding probes torchvision",
    "cli": "export inspect_output log output push startup train",
    "data": "beam_io resize",
    "engine": "cluster states train",
    "export": (
        "card formats image_size manifest measure metadata onnx "
        "run_alone saved_model tflite"
    ),
    "inference": "serving tta",
    "layers": "checks",
    "litert": "edit graph sandbox",
    "losses": "base cross_entropy distillation overlap weighted_sum",
    "models": "archive features steps",
    "plots": "evaluation explain figure model_report preview",
    "utils": "exceptions extras finite native_log signals types",
}
LOWERING = PACKAGE / "layers" / "lowering.py"


def sources(*parts):
    for part in parts or (".",):
        path = PACKAGE / part
        alone = path.with_suffix(".py")
        yield from [alone] if alone.is_file() else sorted(path.rglob("*.py"))


def imported(path):
    """Modules that a file names in any import, lazy ones included."""
    yield from imported_in(ast.parse(path.read_text("utf-8")), path)


def imported_in(tree, path):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", BACKEND_FREE)
def test_convention_backend_free_parts_import_no_tensorflow(part):
    for path in sources(part):
        if path != LOWERING:
            roots = {name.split(".")[0] for name in imported(path)}
            assert not roots & {"tensorflow", "jax", "torch"}, path
    assert list(sources(part))


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def internal_imports():
    """Module -> modules of the package that it imports, lazy imports too."""
    paths = {module_of(path): path for path in sources()}
    return {
        module: {
            name
            for name in imported(path)
            if name in paths and name != "keras_aspp"
        }
        - {module}
        for module, path in paths.items()
    }


def test_convention_imports_point_down_the_ladder():
    rung = {part: i for i, parts in enumerate(LADDER) for part in parts}
    upward = [
        f"{module} imports {name}"
        for module, names in internal_imports().items()
        for name in names
        if module != "keras_aspp"
        and module.split(".")[1] != name.split(".")[1]
        and rung[module.split(".")[1]] <= rung[name.split(".")[1]]
    ]
    assert not upward
    assert {path.stem for path in PACKAGE.iterdir()} >= set(rung)


def test_convention_imports_run_in_no_circle():
    graph = {
        # A package's __init__ re-exports its own modules.
        module: {n for n in names if not module.startswith(f"{n}.")}
        for module, names in internal_imports().items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_convention_only_the_command_line_imports_its_parts_lazily():
    """Its `--help` must not wait for TensorFlow; all others import on top."""
    for path in sources():
        if path.parent.name == "cli" or path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        lazy = {
            name
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
            for name in imported_in(function, path)
            if name.split(".")[0] == "keras_aspp"
        }
        assert not lazy, f"{path}: {lazy}"


def test_convention_one_module_reads_the_private_graph_of_keras():
    private = {
        "_flatten_layers",
        "_functional",
        "_inbound_nodes",
        "_keras_history",
        "_nodes_by_depth",
        "_outbound_nodes",
    }
    assert readers_of(*private) == {"keras_aspp.utils.keras_graph"}


def readers_of(*names):
    """Modules that use a name or an attribute."""
    return {
        module_of(path)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if getattr(node, "attr", getattr(node, "id", None)) in names
    }


def test_convention_private_names_of_other_packages_are_in_decision_16():
    text = (ROOT / "docs/decisions/0016-private-api.md").read_text("utf-8")
    own, used = set(), set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and node.attr[0] == "_":
                written = isinstance(node.ctx, ast.Store)
                (own if written else used).add(node.attr)
        for name in imported(path):
            if name.startswith(("tensorflow.python.", "keras.src.")):
                used.add(name.split(".")[-1])
    # Documented in spite of their underscore; the last two are packages.
    used -= own | {"_replace", "_exit", "ops", "cluster_resolver"}
    used = {name for name in used if not name.startswith("__")}
    assert len(used) > 10
    assert not [name for name in used if f"`{name}`" not in text]


def test_convention_one_package_reads_tflite_files():
    """Others read a graph by `unpacked`, values by `stored_floats`."""
    assert readers_of("InitFromPackedBuf") == {"keras_aspp.litert.graph"}
    private = ("GetRootAs", "_get_ops_details")
    assert readers_of(*private) == {"keras_aspp.litert.values"}


def test_convention_the_library_logs_and_does_not_print():
    """Lines that a step in progress rewrites are no messages of a log."""
    progress = {"keras_aspp.engine.progress", "keras_aspp.utils.progress"}
    printing = {m for m in readers_of("print") if ".cli." not in m}
    assert printing == progress


def test_convention_no_function_is_longer_than_80_lines():
    """Without its docstring; ruff holds complexity and statements."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    text = node.body[0]
                    lines -= text.end_lineno - text.lineno + 1
                assert lines <= 80, f"{path}: {node.name}: {lines} lines"


def test_convention_tests_mirror_the_modules():
    """Those of no single module are in folders of their own."""
    shared = {
        TESTS / "losses" / "test_losses.py",  # what holds for every loss
    }
    strays = [
        str(file)
        for file in TESTS.rglob("test_*.py")
        if file.parent != TESTS
        and file.relative_to(TESTS).parts[0] not in ("hostile", "integration")
        and mirrored_module(file) is None
    ]
    assert sorted(strays) == sorted(map(str, shared))


def test_convention_every_module_has_a_test_file_of_its_own():
    """Those without one are tested through others; none may be added."""
    tested = {
        str(file.parent.relative_to(TESTS) / module)
        for file in TESTS.rglob("test_*.py")
        if (module := mirrored_module(file)) is not None
    }
    without = {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in sources()
        if path.name != "__init__.py"
    } - tested
    listed = {
        str(pathlib.PurePath(folder, name))
        for folder, names in UNMIRRORED.items()
        for name in names.split()
    }
    assert not without - listed, "write a test file for them"
    assert not listed - without, "take them off the list UNMIRRORED"


def test_convention_nothing_imports_the_application():
    for path in sources():
        for name in imported(path):
            assert not name.startswith(("training", "benchmarks")), path


@pytest.mark.slow  # a second TensorFlow
def test_convention_import_is_as_light_as_keras():
    # Whatever Keras itself imports (matplotlib, say) is paid for already.
    code = (
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import keras_aspp\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "new -= sys.stdlib_module_names | {'keras_aspp'}\n"
        "assert not new, new\n"
        "lazy = {'keras_aspp.export', 'keras_aspp.inference'}\n"
        "assert not lazy & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=300,
        cwd=PACKAGE.parent,
    )


def test_convention_public_names_exist():
    for module in (ka, ka.layers, ka.backbones, ka.models, ka.metrics):
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"
    with pytest.raises(AttributeError, match="nothing"):
        _ = ka.nothing


def test_convention_resize_is_at_half_pixel_centres():
    x = np.arange(4, dtype="float32").reshape(1, 4, 1, 1)
    y = ka.layers.BilinearResize(size=(8, 1))(x)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(npy(y)[0, :, 0, 0], expected)


def test_convention_upsample_by_the_stride_then_crop():
    """A pixel has the same value whatever the size of the picture."""
    x = sample((1, 5, 4, 2))
    resize = ka.layers.BilinearResize(scale=16)
    whole = npy(resize(x))
    for height, width in ((80, 64), (65, 49), (70, 50)):
        picture = np.zeros((1, height, width, 3), "float32")
        y = npy(resize(x, reference=picture))
        np.testing.assert_allclose(y, whole[:, :height, :width], atol=1e-6)


def test_convention_layout_is_channels_last_height_first():
    assert keras.config.image_data_format() == "channels_last"
    layer = ka.layers.ASPP(4, (1,))
    assert layer.compute_output_shape((2, 9, 7, 5)) == (2, 9, 7, 4)
    resize = ka.layers.BilinearResize(size=(3, 8))
    assert resize(sample()).shape == (2, 3, 8, 5)


def test_convention_images_are_rgb():
    red = np.zeros((1, 1, 3), "uint8")
    red[..., 0] = 255
    np.testing.assert_array_equal(npy(ka.Preprocess()(red))[0, 0], (1, -1, -1))


@pytest.mark.parametrize("separable", [False, True])
def test_convention_rate_beyond_the_map_is_legal(separable):
    # Chen et al. 2017, section 3.3: a 3x3 at a huge rate degenerates to 1x1.
    x = sample()
    layer = ka.layers.AtrousConv2D(
        4, atrous_rate=50, separable=separable, batch_norm=False
    )
    y = npy(layer(x))
    # No cell sees another, so cells may change places.
    swapped = npy(layer(x[:, ::-1, ::-1]))[:, ::-1, ::-1]
    np.testing.assert_allclose(swapped, y, rtol=1e-4, atol=1e-5)
    assert y.std() > 0.1


def test_convention_dilation_is_in_feature_cells():
    layer = ka.layers.AtrousConv2D(1, atrous_rate=3, batch_norm=False)
    x = np.zeros((1, 9, 11, 1), "float32")
    layer(x)
    layer.conv.set_weights([np.ones((3, 3, 1, 1)), np.zeros(1)])
    x[0, 4, 5] = 1
    rows, columns = np.nonzero(npy(layer(x))[0, ..., 0])
    assert sorted(set(rows)) == [1, 4, 7]
    assert sorted(set(columns)) == [2, 5, 8]


def test_convention_no_training_argument_means_inference():
    layer = ka.layers.ASPP(4, (1,), separable=True, dropout=0.5)
    x = sample()
    before = npy(layer(x))
    np.testing.assert_array_equal(npy(layer(x)), before)
    np.testing.assert_array_equal(npy(layer(x, training=False)), before)
