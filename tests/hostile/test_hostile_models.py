"""Model files from anywhere: `.keras`, state dicts, `.tflite`, SavedModels."""

import copy
import io
import json
import os
import pickle
import pickletools
import re
import resource
import shutil
import struct
import time
import zipfile

import corpus
import h5py
import keras
import numpy as np
import pytest
from helpers import ROOT
from test_hostile_texts import said_by
from tiny_run import toy_segmenter

from keras_aspp.backbones import create_backbone
from keras_aspp.backbones.state_dict import read_state_dict
from keras_aspp.cli.main import main
from keras_aspp.export import export_model
from keras_aspp.export.saved_model import write_saved_model
from keras_aspp.inference import Predictor
from keras_aspp.inference import predictor as predictors
from keras_aspp.litert import sandbox
from keras_aspp.models import DeepLabV3Plus
from keras_aspp.models.segmenter import load_saved
from keras_aspp.utils import archive

TFLITE = ROOT / "saved_models/multiscale_shapes/model_float16.tflite"
WEIGHTS, CONFIG = "model.weights.h5", "config.json"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A `.keras` of ours."""
    return toy_segmenter(tmp_path_factory.mktemp("model"))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(corpus.encoded(corpus.noise(), "PNG"))
    return path


@pytest.fixture
def marker(tmp_path):
    """A file that a model makes if it runs a command."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "a file ran a command"


def repacked(source, path, edit, compression=zipfile.ZIP_STORED):
    """A `.keras` again, after `edit(files)`."""
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    edit(files)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def configured(change):
    """An edit of the configuration."""

    def edit(files):
        content = json.loads(files[CONFIG])
        change(content["config"])
        files[CONFIG] = json.dumps(content).encode()

    return edit


def weighed(change):
    """An edit of the weights: `change(file, name of a data set)`."""

    def edit(files):
        held = io.BytesIO(files[WEIGHTS])
        with h5py.File(held, "r+") as file:
            names = []
            file.visititems(
                lambda name, item: (
                    names.append(name)
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
            change(file, names[0])
        files[WEIGHTS] = held.getvalue()

    return edit


def never_written(file, name):
    del file[name]
    file.create_dataset(name, (800, 1000, 1000), "f4", chunks=(1, 1000, 1000))


def kept_elsewhere(file, name):
    shape = file[name].shape
    del file[name]
    size = int(np.prod(shape)) * 4
    file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, size)])


def linked_elsewhere(file, name):
    del file[name]
    file[name] = h5py.ExternalLink("/etc/other.h5", "/")


def deflated(file, name):
    """Chunks of 256 kB of zeros, a few of which are the data set's."""
    shape = file[name].shape
    del file[name]
    file.create_dataset(
        name,
        shape,
        "f4",
        chunks=(1,) * (len(shape) - 1) + (2**16,),
        maxshape=(None,) * len(shape),
        compression="gzip",
        fillvalue=0,
    )[:] = 0


def texts(file, name):
    del file[name]
    file.create_dataset(name, (4,), h5py.string_dtype())[:] = "x" * 99


def linked_twice(file, name):
    file["again"] = file[name.split("/")[0]]


def in_a_cycle(file, name):
    file[f"{name.rsplit('/', 1)[0]}/up"] = file[name.split("/")[0]]


def nested_deep(file, name):
    group = file
    for _ in range(99):
        group = group.create_group("a")


def layer(layer_type, **config):
    return {
        "module": "keras.layers",
        "class_name": layer_type,
        "config": config,
        "registered_name": None,
    }


KEPT = {"name": "block1_depthwise", "filepath": "/tmp/x"}
CODE = {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA"}}
EDITS = {
    "no_configuration": (lambda f: f.pop(CONFIG), "config.json"),
    "no_weights": (lambda f: f.pop(WEIGHTS), WEIGHTS),
    "no_json": (lambda f: f.update({CONFIG: b"{"}), "JSONDecodeError"),
    "deep_json": (lambda f: f.update({CONFIG: b"[" * 10**5}), "recursion"),
    "a_list": (lambda f: f.update({CONFIG: b"[]"}), "TypeError"),
    "no_hdf5": (lambda f: f.update({WEIGHTS: bytes(999)}), "signature"),
    "hdf5_cut": (
        lambda f: f.update({WEIGHTS: f[WEIGHTS][:9000]}),
        "truncated",
    ),
    "never_written": (weighed(never_written), "3200000000 bytes"),
    "kept_elsewhere": (weighed(kept_elsewhere), "0 are there"),
    "linked_elsewhere": (weighed(linked_elsewhere), "is a link"),
    "deflated": (weighed(deflated), "is compressed"),
    "texts": (weighed(texts), "holds no numbers"),
    "linked_twice": (weighed(linked_twice), "is linked twice"),
    "in_a_cycle": (weighed(in_a_cycle), "is linked twice"),
    "nested_deep": (weighed(nested_deep), "more than 64 deep"),
    "backbone_to_fetch": (
        configured(lambda c: c.update(backbone="mobilenet_v2")),
        "A saved segmenter contains its backbone",
    ),
    "weights_to_read": (
        configured(lambda c: c.update(weights="/etc/passwd")),
        "A saved segmenter contains its backbone",
    ),
    "lambda": (
        configured(lambda c: c.update(backbone=layer("Lambda", function=CODE))),
        "Lambda",
    ),
    "saved_model_within": (
        configured(
            lambda c: c.update(backbone=layer("TFSMLayer", filepath="/tmp/x"))
        ),
        "TFSMLayer",
    ),
    "os_system": (
        configured(
            lambda c: c.update(
                backbone={
                    "module": "os",
                    "class_name": "system",
                    "config": "touch marker",
                    "registered_name": None,
                }
            )
        ),
        "system",
    ),
    "unregistered": (
        configured(
            lambda c: c.update(
                backbone={**layer("Mine"), "registered_name": "mine>Mine"}
            )
        ),
        "Could not deserialize",
    ),
    "no_backbone": (configured(lambda c: c.pop("backbone")), "backbone"),
    "filters": (configured(lambda c: c.update(aspp_filters=-1)), "filters=-1"),
    "classes": (
        configured(lambda c: c.update(num_classes=7)),
        "mine.keras",
    ),
    "rates": (
        configured(lambda c: c.update(atrous_rates=[10**9])),
        "4096 at most",
    ),
    "preprocess": (
        configured(lambda c: c["preprocess"].update(std=float("nan"))),
        "`std`",
    ),
}


def backboned(change):
    """An edit of the layer `block1_depthwise`, in the model in the model."""

    def edit(config):
        layers = config["backbone"]["config"]["layers"]
        change(*(c for c in layers if c["name"] == "block1_depthwise"))

    return configured(edit)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["config"].update(strides=-3), "strides"),
        (lambda c: c["config"].update(nothing=1), "nothing"),
        (lambda c: c["config"].update(depthwise_initializer=CODE), "lambda"),
        (lambda c: c.update(layer("Mine", name=c["name"])), "Mine"),
        (lambda c: c.update(layer("os>system", name=c["name"])), "os>system"),
        (lambda c: c.update(layer("TFSMLayer", **KEPT)), "TFSMLayer"),
    ],
)
def test_a_refused_layer_is_named(
    change, message, segmenter, tmp_path, capsys, marker
):
    path = repacked(segmenter, tmp_path / "mine.keras", backboned(change))
    said = said_by(["inspect", "--model", path], capsys)
    named, _, reason = said.partition("layer 'block1_depthwise': ")
    assert "mine.keras" in named
    assert message in reason
    assert len(reason) < 500


def test_huge_layers_are_refused_before_they_take_memory(
    segmenter, tmp_path, capsys
):
    """40 GB of weights in a configuration, and none of them in the file."""
    create = keras.Variable.__init__
    path = repacked(
        segmenter,
        tmp_path / "mine.keras",
        backboned(lambda c: c["config"].update(depth_multiplier=10**9)),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = said_by(["inspect", "--model", path], capsys)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "layer 'block1_depthwise': config.json declares 7" in said
    assert f"{WEIGHTS} holds" in said
    assert grown < 2**19  # KiB
    assert keras.Variable.__init__ is create


@pytest.mark.parametrize("name", EDITS)
def test_keras_file(name, segmenter, tmp_path, capsys, marker, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit, message = EDITS[name]
    path = repacked(segmenter, tmp_path / "mine.keras", edit)
    said = said_by(["inspect", "--model", path], capsys)
    assert message in said
    assert "mine.keras" in said


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_keras_file_that_expands(name, segmenter, tmp_path, capsys):
    path = repacked(
        segmenter,
        tmp_path / "mine.keras",
        lambda files: files.update({name: bytes(2**26)}),
        zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 2**20
    assert "to 67108864 bytes" in said_by(["inspect", "--model", path], capsys)


def swap_weights(files):
    """Keras' other container, of zeros that take 1 kB and fill 2 GB."""
    del files[WEIGHTS]
    packed = io.BytesIO()
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + (
            b"{'descr': '|u1', 'fortran_order': False, "
            b"'shape': (2000000000,), }"
        ).ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.npy", header)
    files["model.weights.npz"] = packed.getvalue()


@pytest.mark.parametrize(
    "edit, message",
    [
        (swap_weights, "holds 'model.weights.npz'"),
        (lambda f: f.update({"more.bin": b"0"}), "holds 'more.bin'"),
        (lambda f: f.pop(WEIGHTS), f"holds no {WEIGHTS}"),
    ],
)
def test_containers_without_bounds_are_refused(
    edit, message, segmenter, tmp_path, capsys
):
    path = repacked(segmenter, tmp_path / "mine.keras", edit)
    assert message in said_by(["inspect", "--model", path], capsys)


def test_an_entry_given_twice_is_refused(segmenter, tmp_path, capsys):
    path = repacked(segmenter, tmp_path / "mine.keras", lambda _: None)
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr(CONFIG, b"{}")
    said = said_by(["inspect", "--model", path], capsys)
    assert "holds 'config.json' twice" in said


@pytest.fixture(scope="module")
def broken(segmenter, tmp_path_factory):
    """A model of which one weight is NaN, another infinite; and its file."""
    model = load_saved(segmenter)
    classifier = model.get_layer("classifier")
    kernel, bias = classifier.get_weights()
    kernel[0, 0, 0, 1], bias[2] = np.nan, -np.inf
    classifier.set_weights([kernel, bias])
    path = tmp_path_factory.mktemp("broken") / "broken.keras"
    model.save(path)
    return model, path


NAMED = r"in 2 of \d+ tensors: .*classifier/kernel.*classifier/bias"


@pytest.mark.slow
def test_weights_that_are_not_finite_are_named(broken, tmp_path):
    model, path = broken
    write_saved_model(model, tmp_path / "saved")
    for load in (
        lambda: load_saved(path),
        lambda: Predictor(path),
        lambda: Predictor(tmp_path / "saved"),
        # As a run starts from `weights`.
        lambda: DeepLabV3Plus(3, model.backbone, weights=path),
        lambda: export_model(
            model,
            tmp_path / "out",
            class_names=list("abc"),
            verify_images=[np.zeros((64, 64, 3), "uint8")],
        ),
    ):
        with pytest.raises(ValueError, match=NAMED):
            load()


def test_weights_of_files_to_import_are_finite(tmp_path):
    network = keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False
    )
    gamma = network.get_layer("bn_Conv1").gamma
    gamma.assign(gamma + np.nan)
    network.save_weights(tmp_path / "a.weights.h5")
    message = r"in 1 of \d+ tensors: bn_Conv1/gamma"
    with pytest.raises(ValueError, match=message):
        create_backbone("mobilenet_v2_0.35", weights=tmp_path / "a.weights.h5")
    data = np.array([1, np.inf], "<f4").tobytes()
    path = torch_zip(tmp_path / "a.pth", pickled_tensors(1, 2), [("0", data)])
    with pytest.raises(ValueError, match="in 1 of 1 tensors: 0000"):
        read_state_dict(path)


def listed(*names, dtype="S9"):
    """An edit of the weights: which of them an older file lists."""

    def change(file, name):
        file.attrs.create("layer_names0", np.array(names[:1], dtype))
        file.attrs.create("layer_names1", np.array(names[1:], dtype))

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (never_written, "3200000000 bytes"),
        (kept_elsewhere, "0 are there"),
        (linked_elsewhere, "is a link"),
        (deflated, "is compressed"),
        (texts, "holds no numbers"),
        (linked_twice, "is linked twice"),
        (nested_deep, "more than 64 deep"),
        (listed("a", "b", "a"), "layer_names must be names, each once"),
        (listed("a", "./a"), "layer_names must be names, each once"),
        (listed("a", "/a"), "layer_names must be names, each once"),
        (
            listed("a", *"bcd" * 999, dtype=h5py.string_dtype()),
            "layer_names1 holds 2997 texts of up to [0-9]+ bytes",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".weights.h5"])
def test_file_of_weights_of_a_backbone(
    change, message, suffix, segmenter, tmp_path, monkeypatch
):
    monkeypatch.setattr(archive, "_MAX_TEXT_BYTES", 2**20)
    with zipfile.ZipFile(segmenter) as whole:
        files = {WEIGHTS: whole.read(WEIGHTS)}
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(files[WEIGHTS])
    archive.check_weights_file(path)
    weighed(change)(files)
    path.write_bytes(files[WEIGHTS])
    with pytest.raises(ValueError, match=f"{message}.*Received: .*mine"):
        create_backbone("mobilenet_v2_0.35", weights=path)


def test_keras_file_as_weights_of_a_backbone(segmenter, tmp_path):
    path = repacked(segmenter, tmp_path / "mine.keras", swap_weights)
    with pytest.raises(ValueError, match=r"model\.weights\.npz.*mine\.keras"):
        create_backbone("mobilenet_v2_0.35", weights=path)


@pytest.mark.parametrize("name", ["a.weights.json", "a.npz", "a", "a.H5"])
def test_weights_of_other_containers_are_refused_by_name(name, tmp_path):
    (tmp_path / name).write_text("{}")
    message = rf"is Keras' `\.keras`.*torchvision's.*{name}"
    with pytest.raises(ValueError, match=message):
        create_backbone("mobilenet_v2_0.35", weights=tmp_path / name)


def test_weights_of_a_tflite_are_finite(tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(TFLITE.read_bytes())
    graph = schema.Model.GetRootAs(content).Subgraphs(0)
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        buffer = schema.Model.GetRootAs(content).Buffers(tensor.Buffer())
        if buffer.DataLength() > 999:
            buffer.DataAsNumpy()[:2] = 0, 0x7E  # NaN in 16 bits
            break
    path = tmp_path / "mine.tflite"
    path.write_bytes(content)
    name = re.escape(tensor.Name().decode())
    with pytest.raises(ValueError, match=f"in 1 of .* tensors: {name}"):
        Predictor(path)


def test_entries_of_the_same_bytes_are_refused(segmenter, tmp_path, capsys):
    """A thousand names for one entry, each within its own bound."""
    path = repacked(segmenter, tmp_path / "mine.keras", lambda _: None)
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo(WEIGHTS)
        for i in range(999):
            other = copy.copy(entry)
            other.filename = f"assets/{i}"
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
        archive._didModify = True
    assert path.stat().st_size < 2 * os.path.getsize(segmenter)
    assert "entries overlap" in said_by(["inspect", "--model", path], capsys)


def test_keras_file_that_was_packed_again_is_read(segmenter, tmp_path):
    path = repacked(
        segmenter, tmp_path / "a.keras", lambda _: None, zipfile.ZIP_DEFLATED
    )
    assert load_saved(path).num_classes == 3


def test_files_that_are_no_model(
    segmenter, tmp_path, capsys, picture, monkeypatch
):
    """Under each suffix, to each command that takes a model."""
    monkeypatch.chdir(tmp_path)
    with open(segmenter, "rb") as file:
        whole = file.read()
    contents = {
        "empty": b"",
        "garbage": np.random.default_rng(0).bytes(5000),
        "cut": whole[: len(whole) // 2],
        "end_cut": whole[:-30],
        "zip_magic": b"PK\x03\x04" + bytes(500),
        "pickle": pickle.dumps({"a": 1}),
    }
    for suffix in ("keras", "tflite"):
        for name, content in contents.items():
            path = tmp_path / f"{name}.{suffix}"
            path.write_bytes(content)
            arguments = ["predict", "--model", path, "--output", "out", picture]
            assert path.name in said_by(arguments, capsys)
            assert path.name in said_by(["inspect", "--model", path], capsys)
    assert not (tmp_path / "out").exists()


def test_keras_models_of_others(tmp_path, capsys, picture):
    x = keras.Input((None, None, 3))
    path = tmp_path / "mine.keras"
    keras.Model(x, keras.layers.Conv2D(3, 1)(x)).save(path)
    arguments = [
        "predict",
        "--model",
        path,
        "--output",
        tmp_path / "o",
        picture,
    ]
    assert "holds no segmenter" in said_by(arguments, capsys)
    keras.Model(x, keras.layers.Lambda(lambda t: t * 2)(x)).save(path)
    assert "Lambda" in said_by(["inspect", "--model", path], capsys)


def runs(command):
    """A pickle that runs a command when it is loaded."""

    class Runs:
        def __reduce__(self):
            import os

            return os.system, (command,)

    return pickle.dumps(Runs())


def torch_zip(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickled)
        for key, content in storages:
            archive.writestr(f"a/data/{key}", content)
    return path


def safetensors(header, data=b"", length=None):
    held = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(held) if length is None else length
    return struct.pack("<Q", length) + held + data


def state_dicts(command):
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "empty.pth": b"",
        "garbage.pth": np.random.default_rng(0).bytes(999),
        "command.pth": runs(command),
        "eval.pth": b"cbuiltins\neval\n(S'1'\ntR.",
        # Room for four billion objects, asked for by nine bytes.
        "memo.pth": pickle.PROTO + b"\x02Nr\xff\xff\xff\xff.",
        "long_text.pth": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
        "deep.pth": b"(" * 10**6 + b".",
        "cut.pth": pickle.dumps({"a": list(range(99))})[:50],
        "list.pth": pickle.dumps([1, 2]),
        "empty.safetensors": b"",
        "garbage.safetensors": np.random.default_rng(0).bytes(999),
        "long_header.safetensors": safetensors(b"{}", length=2**62),
        "no_json.safetensors": safetensors(b"{{{{"),
        "deep.safetensors": safetensors(b"[" * 10**5),
        "data_cut.safetensors": safetensors({"a": tensor}, b"1234"),
        "shape.safetensors": safetensors(
            {"a": {**tensor, "shape": [2**40]}}, bytes(8)
        ),
        "dtype.safetensors": safetensors(
            {"a": {**tensor, "dtype": "X7"}}, bytes(8)
        ),
    }


STATE_DICTS = sorted(state_dicts("true"))


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dict(name, tmp_path, marker):
    path = tmp_path / name
    path.write_bytes(state_dicts(f"touch {marker}")[name])
    start = time.process_time()
    with pytest.raises(ValueError, match="Not a state dict") as error:
        read_state_dict(path)
    assert name in str(error.value)
    assert time.process_time() - start < 5


def test_zipped_state_dicts(tmp_path, marker):
    path = tmp_path / "a.pth"
    torch_zip(path, runs(f"touch {marker}"))
    with pytest.raises(ValueError, match="is not a tensor"):
        read_state_dict(path)
    torch_zip(path, bytes(2**28), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed data"):
        read_state_dict(path)
    torch_zip(path, b"")
    with pytest.raises(ValueError, match="Not a state dict"):
        read_state_dict(path)


def pickled_tensors(count, size):
    """A data.pkl of tensors that all are the same `size` floats."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuJ" + struct.pack("<i", size) + b"tQ"
    )
    one = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00J"
        b"" + struct.pack("<i", size) + b"\x85K\x01\x85\x89NtR"
    )
    names = (b"X\x04\x00\x00\x00" + b"%04d" % i for i in range(count))
    return b"\x80\x02}(" + b"".join(n + one for n in names) + b"u."


def test_tensors_that_share_a_storage_are_counted(tmp_path):
    data = np.arange(1000, dtype="<f4").tobytes()
    path = torch_zip(
        tmp_path / "a.pth", pickled_tensors(2, 1000), [("0", data)]
    )
    assert [t.sum() for t in read_state_dict(path).values()] == [499500.0] * 2
    torch_zip(path, pickled_tensors(999, 1000), [("0", data)])
    with pytest.raises(
        ValueError, match="3996000 bytes of tensors out of 4000"
    ):
        read_state_dict(path)


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes, of classes too."""
    content = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x04\x00\x00\x00read"
        b"K\x01s\x86b."
    )
    assert "BUILD" in [op.name for op, *_ in pickletools.genops(content)]
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match="Not a state dict"):
        read_state_dict(tmp_path / "a.pth")
    data = np.ones(4, "<f4").tobytes()
    path = torch_zip(tmp_path / "b.pth", pickled_tensors(1, 4), [("0", data)])
    assert read_state_dict(path)["0000"].sum() == 4


def other_tflite(function, shape, dtype):
    import tensorflow as tf

    made = tf.function(
        function, input_signature=[tf.TensorSpec(shape, dtype)]
    ).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([made])
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    return converter.convert()


def test_tflite_files_of_others(tmp_path, capsys, picture):
    import tensorflow as tf

    files = {
        "vector": (lambda x: x * 2, [1, 7], tf.float32),
        "floats": (lambda x: x[..., 0] * 2, [1, 8, 8, 3], tf.float32),
        "grey": (lambda x: x[..., 0], [1, 8, 8, 1], tf.uint8),
        "flex": (flex, [1, 8, 8, 3], tf.uint8),
    }
    for name, arguments in files.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(other_tflite(*arguments))
        command = ["predict", "--model", path, "--output", tmp_path / "o"]
        assert path.name in said_by([*command, picture], capsys)
    assert not (tmp_path / "o").exists()


def flex(x):
    """What only TensorFlow's own operators compute."""
    import tensorflow as tf

    return tf.raw_ops.Erf(x=tf.cast(x[..., 0], tf.float32))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
            "signal 11",
        ),
        ("import time\ntime.sleep(60)", "no answer within 3 seconds"),
    ],
)
def test_a_tflite_that_brings_the_interpreter_down(
    code, message, tmp_path, capsys, picture, monkeypatch
):
    """Played: the files that do so are LiteRT's to mend."""
    monkeypatch.setattr(sandbox, "_TRIAL", code)
    monkeypatch.setattr(sandbox, "TIMEOUT_SECONDS", 3)
    path = shutil.copy(TFLITE, tmp_path / "mine.tflite")
    arguments = [
        "predict",
        "--model",
        path,
        "--output",
        tmp_path / "o",
        picture,
    ]
    said = said_by(arguments, capsys)
    assert message in said
    assert "mine.tflite" in said


def test_a_trial_imports_nothing_from_the_working_directory(
    tmp_path, marker, monkeypatch
):
    for name in ("ai_edge_litert", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    sandbox.check_runs(shutil.copy(TFLITE, tmp_path / "mine.tflite"))


def saved_model(path, **signatures):
    import tensorflow as tf

    module = tf.Module()
    made = {
        name: tf.function(function).get_concrete_function(**specs)
        for name, (function, specs) in signatures.items()
    }
    tf.saved_model.save(module, str(path), signatures=made)
    return path


def test_saved_models_of_others(tmp_path, capsys, picture):
    import tensorflow as tf

    pictures = tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")
    numbers = tf.TensorSpec([None], tf.float32, name="x")
    made = {
        "other_name": {
            "predict": (lambda image: {"labels": image}, {"image": pictures})
        },
        "other_input": {
            "serving_default": (lambda x: {"labels": x}, {"x": numbers})
        },
        "other_output": {
            "serving_default": (lambda image: {"y": image}, {"image": pictures})
        },
    }
    for name, signatures in made.items():
        path = saved_model(tmp_path / name, **signatures)
        command = ["predict", "--model", path, "--output", tmp_path / "o"]
        said = said_by([*command, picture], capsys)
        assert "signature `serving_default`" in said
    file = path / "saved_model.pb"
    for content in (b"", file.read_bytes()[:100], bytes(999)):
        file.write_bytes(content)
        assert "other_output" in said_by([*command, picture], capsys)
        assert "other_output" in said_by(["inspect", "--model", path], capsys)


@pytest.mark.slow
def test_a_picture_larger_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(predictors, "_memory_bytes", lambda: 2000 * 64 * 96)
    model = Predictor(toy_segmenter(tmp_path))
    images = np.zeros((2, 64, 96, 3), "uint8")
    assert model.predict_batch(images).shape == (2, 64, 96)  # one by one
    with pytest.raises(ValueError, match=r"65x96 needs about 0 GB.*--window"):
        model.predict(np.zeros((65, 96, 3), "uint8"))
    with pytest.raises(ValueError, match="needs about 0 GB"):
        model.predict(np.zeros((65, 96, 3), "uint8"), return_scores=True)
    pieces = Predictor(tmp_path / "toy.keras", window=64)
    assert pieces.predict(np.zeros((65, 96, 3), "uint8")).shape == (65, 96)


def test_a_picture_of_no_cell_is_refused(tmp_path, capsys):
    """Keras' padding leaves nothing of it; ours would."""
    picture = tmp_path / "dot.png"
    picture.write_bytes(corpus.encoded(corpus.noise(1, 1), "PNG"))
    model = toy_segmenter(tmp_path)
    arguments = ["predict", "--model", model, "--output", str(tmp_path / "o")]
    assert main([*arguments, str(picture)]) == 1
    said = capsys.readouterr().err.splitlines()[0]
    # Counted by hand: 11 -> 6 (same) -> 3 -> 2 -> 1 cell, of 10 none is left.
    assert "needs images of at least 11x11 pixels" in said
    assert "Received: size 1x1" in said
    assert said.endswith("Image: " + str(picture))
