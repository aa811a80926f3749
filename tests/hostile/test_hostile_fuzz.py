"""Files with bytes changed: whatever they hold, one line or a result."""

import contextlib
import io
import json
import signal
import time
import zipfile

import corpus
import numpy as np
import pytest
import yaml
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile_models import pickled_tensors, safetensors, torch_zip
from tiny_run import toy_segmenter

from keras_aspp.backbones.state_dict import read_state_dict
from keras_aspp.config.load import load_config
from keras_aspp.data import decode
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.litert import sandbox
from keras_aspp.litert.describe import describe_tflite
from keras_aspp.models.segmenter import load_saved
from keras_aspp.utils.errors import one_line

TFLITE = ROOT / "saved_models/multiscale_shapes/model_float16.tflite"
CONFIG = ROOT / "keras_aspp/configs/multiscale_shapes.yaml"
SPEC = DatasetSpec(["a", "b", "c"])
PICTURES = list(corpus.pictures()[1].values())
MASKS = list(corpus.masks()[1].values())
# The decoder of each suffix is asked.
NAMES = ("a.png", "a.webp", "a.bmp")
SECONDS = 20  # for one file, on a machine that does other things too
quick = settings(
    max_examples=60,
    deadline=5000,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def mutated(content, rng):
    """A copy with bytes changed, cut, doubled or torn out."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(data) or 1))
        kind = rng.integers(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 2:
            data[at:at] = data[: int(rng.integers(1, 99))]
        elif kind == 3:
            data[at : at + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]
            )
        else:
            data[at : at + 1] = rng.bytes(1)
    return bytes(data)


@contextlib.contextmanager
def within(seconds):
    """Fails what takes longer, wherever it is."""

    def stop(*_):
        pytest.fail(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answers(read, *arguments):
    """Whether a file is read; fails on all but a `ValueError` of one line."""
    try:
        with within(SECONDS):
            read(*arguments)
    except ValueError as error:
        assert "\n" not in one_line(error)
        return False
    return True


@quick
@given(st.integers(0, 2**32), st.sampled_from(PICTURES))
def test_pictures(seed, content):
    content = mutated(content, np.random.default_rng(seed))
    for name in NAMES:
        answers(decode.read_image, content, name)
    answers(decode.read_mask, content, SPEC, None, "a record")


keys = st.sampled_from(
    ["model", "data", "train", "export", "loss", "augment", "backbone"]
    + ["dropout", "crop_size", "batch_size", "label_map", "total_epochs"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=9,
)


@quick
@given(st.dictionaries(keys, values, max_size=3) | values)
def test_configurations(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    answers(load_config, path)


spec_keys = st.sampled_from(
    ["class_names", "ignore_label", "colormap", "label_map", "name", "license"]
)


@quick
@given(
    st.dictionaries(spec_keys, values).map(
        lambda given: {"class_names": ["a", "b"], **given}
    )
    | values
)
def test_dataset_json(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "dataset.json"
    path.write_text(json.dumps(content, default=str))
    if answers(DatasetSpec.from_file, path):
        spec = DatasetSpec.from_file(path)
        assert decode.label_table(spec).max() <= 255
        assert len(spec.colors()) == spec.num_classes


def keras_parts(path):
    """Configuration and weights of a `.keras`, whose sums are then right."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def keras_with(parts, name, rng):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for other, content in parts.items():
            changed = mutated(content[:20_000], rng) + content[20_000:]
            archive.writestr(other, changed if other == name else content)
    return held.getvalue()


def plain_safetensors():
    tensor = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    return safetensors({"a": tensor}, np.arange(6, dtype="<f4").tobytes())


@pytest.mark.slow
def test_two_thousand_files(tmp_path, capsys):
    rng = np.random.default_rng(20261125)
    data = np.arange(99, dtype="<f4").tobytes()
    pth = torch_zip(
        tmp_path / "a.pth", pickled_tensors(2, 99), [("0", data)]
    ).read_bytes()
    whole = keras_parts(toy_segmenter(tmp_path))
    tflite = TFLITE.read_bytes()
    spec = b'{"class_names": ["a", "b", "c"], "ignore_label": 255, "colormap": '
    spec += b'[[0, 0, 0], [1, 2, 3], [4, 5, 6]], "label_map": {"7": "ignore"}}'
    path = tmp_path / "file"

    def from_file(read, suffix):
        def write_and_read(content):
            own = path.with_suffix(suffix)
            own.write_bytes(content)
            read(own)

        return write_and_read

    def structure(content):
        """The end of a `.tflite` holds its graph, the rest its weights."""
        return content[:-20_000] + mutated(content[-20_000:], rng)

    def try_and_describe(file):
        describe_tflite(file)
        sandbox.check_runs(file)

    def pickled():
        """A pickle in an archive whose sums are right."""
        content = mutated(pickled_tensors(2, 99), rng)
        own = torch_zip(tmp_path / "b.pth", content, [("0", data)])
        return own.read_bytes()

    kinds = {
        "picture": (700, lambda i: mutated(PICTURES[i % len(PICTURES)], rng)),
        "mask": (350, lambda i: mutated(MASKS[i % len(MASKS)], rng)),
        "yaml": (300, lambda i: mutated(CONFIG.read_bytes(), rng)),
        "json": (300, lambda i: mutated(spec, rng)),
        "archive": (40, lambda i: mutated(pth, rng)),
        "pickle": (120, lambda i: pickled()),
        "safetensors": (100, lambda i: mutated(plain_safetensors(), rng)),
        "keras": (40, lambda i: keras_with(whole, sorted(whole)[i % 3], rng)),
        "tflite": (50, lambda i: structure(tflite)),
    }
    reads = {
        "picture": read_picture,
        "mask": lambda content: decode.read_mask(content, SPEC, None, "a"),
        "yaml": from_file(load_config, ".yaml"),
        "json": from_file(DatasetSpec.from_file, ".json"),
        "archive": from_file(read_state_dict, ".pth"),
        "pickle": from_file(read_state_dict, ".pth"),
        "safetensors": from_file(read_state_dict, ".safetensors"),
        "keras": from_file(load_saved, ".keras"),
        "tflite": from_file(try_and_describe, ".tflite"),
    }
    start, tried, refused = time.monotonic(), 0, {}
    for kind, (count, make) in kinds.items():
        for i in range(count):
            content = make(i)
            refused[kind] = refused.get(kind, 0) + (
                not answers(reads[kind], content)
            )
            tried += 1
    assert tried == 2000
    # Not all of one kind fail at the door, and not all get through.
    for kind, count in refused.items():
        assert 0 < count, kind
        # An archive's sums do not fit, and a pickle is code all through.
        sturdy = kind in ("archive", "pickle")
        assert sturdy or count < kinds[kind][0], kind
    with capsys.disabled():
        seconds = time.monotonic() - start
        print(f"\n{tried} files in {seconds:.0f} s; refused: {refused}")


def read_picture(content):
    suffix = {b"RI": ".webp", b"BM": ".bmp"}.get(content[:2], ".png")
    return decode.read_image(content, f"a{suffix}")


def test_the_sources_of_the_mutations_are_sound(tmp_path):
    """What is mutated is read as it is."""
    (tmp_path / "a.safetensors").write_bytes(plain_safetensors())
    assert read_state_dict(tmp_path / "a.safetensors")["a"].shape == (2, 3)
    data = np.ones(99, "<f4").tobytes()
    pth = torch_zip(tmp_path / "a.pth", pickled_tensors(2, 99), [("0", data)])
    assert len(read_state_dict(pth)) == 2
    for content in PICTURES:
        read_picture(content)
    for content in MASKS:
        decode.read_mask(content, SPEC)
    load_config(CONFIG)
