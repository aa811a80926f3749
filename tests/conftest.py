"""Fixtures for every test.

Nothing here imports TensorFlow by itself: where processes of pytest-xdist run
the tests, the one that starts them needs none.
"""

import gc
import os
import pathlib
import tempfile

import pytest

# Read when TensorFlow is imported, so before Keras is.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes on two cores: more threads would be in each other's way.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of PyTorch and NumPy
# XLA's own passes run as ever; LLVM's optimizations and its newer code
# generator would take most of the time of compiling what runs a few times.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

pytest.register_assert_rewrite("helpers", "model_tester", "tiny_run")
pytest_plugins = ["time_share"]
ROOT = pathlib.Path(__file__).parents[1]
INTEGRATION = ROOT / "tests" / "integration"  # every test of it is slow
ALL_SLOW = "\npytestmark = pytest.mark.slow"  # in a module
# Looking for doctests in helpers would import them under a second name.
collect_ignore = [
    str(path)
    for path in (ROOT / "tests").rglob("*.py")
    if not path.name.startswith("test_")
]

# They begin first, so that no process is left with a long file at the end.
LONG_FILES = [
    f"tests/{name}.py"
    for name in (
        "cli/test_demo",  # waits for the tiny run, which it builds
        "models/test_deeplab_v3",
        "export/test_exporter",
        "cli/test_main",
        "losses/test_losses",
        "backbones/test_output_stride",
        "inference/test_predictor",
        "models/test_precision_matrix",
        "integration/test_resume_matrix",
        "backbones/test_families",
        "integration/test_kill",
        "integration/test_two_processes",
        "integration/test_jax",
        "integration/test_ablation",
        "weights/test_torchvision",
        "backbones/test_zoo",
        "backbones/test_zoo_preprocess_of",
        "integration/test_published",
        "models/test_deeplab_v3_plus",
        "layers/test_lowering",
        "hostile/test_hostile_models",
        "integration/test_channels",
    )
]


def pytest_configure(config):
    if config.getoption("dist", "no") != "no":
        return  # other processes run the tests
    # What an import makes stays.
    gc.disable()
    config.pluginmanager.import_plugin("tiny_run")
    import forked

    forked.save_time()
    gc.enable()


def pytest_ignore_collect(collection_path, config):
    """The fast tests do not import what only slow ones need, as PyTorch."""
    if config.option.markexpr != "not slow":
        return None
    slow = collection_path == INTEGRATION or (
        collection_path.match("test_*.py")
        and ALL_SLOW in collection_path.read_text("utf-8")
    )
    return slow or None


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by mark
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(INTEGRATION):
            item.add_marker(pytest.mark.slow)
        # Each of their examples builds a real backbone.
        if isinstance(item, pytest.DoctestItem) and (
            item.path.match("models/*") or item.path.match("backbones/*")
        ):
            item.add_marker(pytest.mark.slow)
    rank = {file: i for i, file in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


def pytest_xdist_make_scheduler(config, log):
    """File by file, so that what a module shares is built once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by the number of tests
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """The system's temporary folder is pytest's, which pytest clears.

    AutoGraph and TFDS leave files there when a process of pytest-xdist ends,
    since that runs no exit handlers.
    """
    folder = str(tmp_path_factory.mktemp("system"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def seed():
    from helpers import set_seed

    set_seed(20180207)


@pytest.fixture
def no_random_weights(monkeypatch):
    """Zeros for random kernels, which take most of the time of a build."""
    import keras

    def zeros(self, shape, dtype=None, **kwargs):
        return keras.ops.zeros(shape, dtype)

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)


@pytest.fixture
def two_equal_blocks(monkeypatch):
    """Two blocks where the deepest families repeat one up to 20 times."""
    import inspect

    import keras

    nasnet, inception = (
        inspect.getmodule(getattr(keras.applications, name))
        for name in ("NASNetMobile", "InceptionResNetV2")
    )
    build = nasnet.NASNet
    monkeypatch.setattr(
        nasnet,
        "NASNet",
        lambda *args, **kwargs: build(*args, **{**kwargs, "num_blocks": 2}),
    )
    monkeypatch.setattr(
        inception, "range", lambda *_: range(1, 3), raising=False
    )


@pytest.fixture(scope="session")
def shared():
    """The folder beside the project, which not every machine has."""
    path = os.environ.get("KERAS_ASPP_SHARED", ROOT.parent / "shared")
    path = pathlib.Path(path)
    if not path.is_dir():
        pytest.skip("shared/ is absent: set KERAS_ASPP_SHARED (2026-11-28)")
    return path


@pytest.fixture(scope="session")
def toy_backbone():
    """A factory of four-block networks down to stride 32."""
    from helpers import make_toy_backbone

    return make_toy_backbone


@pytest.fixture(autouse=True)
def messages_are_printed():
    """Prints what the package logs, as the command line does."""
    from keras_aspp.cli.log import printed_messages

    with printed_messages():
        yield
