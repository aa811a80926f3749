"""Pictures and masks from anywhere, through the commands that read them."""

import json
import os
import re
import resource
import subprocess
import sys
import time

import corpus
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT
from PIL import Image

import keras_aspp as ka
from keras_aspp.cli.main import main
from keras_aspp.data import decode
from keras_aspp.data.folder import FolderSource, check_folder
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.inference.serving import decode_bytes

BAD, GOOD = corpus.pictures()
BAD_MASKS, GOOD_MASKS = corpus.masks()
SPEC = DatasetSpec(["a", "b", "c"])
MODEL = ROOT / "saved_models/multiscale_shapes/model_float16.tflite"
# Names that a terminal, a table or TensorFlow could stumble over.
NAMES = (
    b"two\nlines.png",
    b"caf\xe9.png",
    b"red\x1b[31m.png",
    "\u202egnp.x.png".encode(),
    b"two  spaces.png",
    b"$\\mathtext$.png",
    b".hidden.png",
    b"dots.in.it.png",
)
needs_pipes = pytest.mark.skipif(
    not hasattr(os, "mkfifo"),
    reason="pipes in folders are POSIX's (2026-11-28)",
)


@pytest.mark.parametrize("name", BAD)
def test_bad_picture_is_one_line_with_its_name(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    start = time.process_time()
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        decode.read_image(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="File: a record"):
        decode.read_image(BAD[name], name="a record")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", GOOD)
def test_good_picture_is_read(name):
    for exif in (False, True):
        image = decode.read_image(GOOD[name], name, exif)
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_mask_is_one_line_with_its_name(name):
    with pytest.raises(ValueError, match="File: a mask") as error:
        decode.read_mask(BAD_MASKS[name], SPEC, (40, 56), "a mask")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GOOD_MASKS)
def test_good_mask_is_read(name):
    labels = decode.read_mask(GOOD_MASKS[name], SPEC, (40, 56))
    assert np.unique(labels).tolist() == [0, 1, 2]


def test_no_decoder_but_jpeg_and_png_is_asked(monkeypatch):
    """PostScript would start a program."""
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript",
        lambda *_, **__: pytest.fail("a program is started"),
    )
    with pytest.raises(ValueError, match="no JPEG or PNG"):
        decode.read_image(BAD["postscript.png"])


def odd_folder(folder):
    """What is no file, under names of files; returns the paths."""
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    return sorted(folder.iterdir())


@needs_pipes
def test_predict_does_the_rest(tmp_path, capsys):
    """The whole corpus at once: each bad one a line, each good one done."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    odd = [*odd_folder(folder), folder / "gone.png"]
    for name, content in {**BAD, **GOOD}.items():
        (folder / name).write_bytes(content)
    for name in NAMES:
        path = os.path.join(os.fsencode(folder), name)
        with open(path, "wb") as file:
            file.write(GOOD["plain.png"])
    names = sorted({*folder.iterdir(), *odd})
    arguments = ["predict", "--model", str(MODEL), "--output", str(output)]
    assert main([*arguments, *map(str, names)]) == 1
    *lines, last = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if line.startswith("keras-aspp")]
    assert len(lines) == len(BAD) + len(odd)
    assert f"{len(lines)} of {len(names)} images failed" in last
    for name in (*BAD, *(path.name for path in odd)):
        assert sum(f"/{name} (" in f"{line} (" for line in lines) == 1, name
    done = len(GOOD) + len(NAMES)
    written = [path.name for path in output.iterdir()]
    assert len(written) == 3 * done + 1  # the record of them
    assert not [name for name in written if name.endswith(".tmp")]


def data_set(root, pictures, masks):
    """A folder data set of one split, from bytes."""
    for part, files in (("images", pictures), ("masks", masks)):
        (root / part / "train").mkdir(parents=True)
        for name, content in files.items():
            path = os.path.join(os.fsencode(root / part / "train"), name)
            with open(path, "wb") as file:
                file.write(content)
    (root / "dataset.json").write_text('{"class_names": ["a", "b", "c"]}')
    return root


def hostile_data(root):
    good, mask = GOOD["plain.png"], GOOD_MASKS["plain"]
    pictures = {name: good for name in NAMES if not name.startswith(b".")}
    masks = dict.fromkeys(pictures, mask)
    for name, content in BAD.items():
        stem, _, suffix = name.rpartition(".")
        pictures[f"bad_{stem}_{suffix}.{suffix}".encode()] = content
        masks[f"bad_{stem}_{suffix}.png".encode()] = mask
    for name, content in {**BAD_MASKS, **GOOD_MASKS}.items():
        pictures[f"mask_{name}.png".encode()] = good
        masks[f"mask_{name}.png".encode()] = content
    return data_set(root, pictures, masks)


@needs_pipes
def test_data_check_reports_each_and_reads_the_rest(tmp_path, capsys):
    root = hostile_data(tmp_path / "data")
    odd_folder(root / "images" / "train")
    report = tmp_path / "report.json"
    assert main(["data", "check", str(root), "--json", str(report)]) == 1
    out, err = capsys.readouterr()
    found = json.loads(report.read_text())
    # There is no split to validate on, either. Links without a target are
    # images without a mask.
    links = ("dangling.png", "loop.png")
    count = len(BAD) + len(BAD_MASKS) + len(links) + 1
    for name in links:
        assert any(name in line for line in found["problems"])
    assert f"{count} problems." in out
    assert len(found["problems"]) == count
    for name in BAD:
        stem, _, suffix = name.rpartition(".")
        own = f"bad_{stem}_{suffix}.{suffix}"
        assert sum(own in line for line in found["problems"]) == 1, name
    for name in BAD_MASKS:
        own = f"mask_{name}.png"
        assert sum(own in line for line in found["problems"]) == 1, name
    assert "\x1b" not in out
    assert err == ""


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--model", str(MODEL), "--split", "train", "--data"),
        ("data", "preview", "--output", "sheet.png"),
        (
            *("train", "--config", "folder", "--workdir", "run"),
            # Without weights to download, which would be looked for first.
            *("--model.backbone_weights", "null"),
            *("--data.validation_split", "train", "--data.root"),
        ),
    ],
)
def test_other_commands_name_the_first(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = data_set(
        tmp_path / "data",
        {b"a.png": GOOD["plain.png"], b"b.png": BAD["cut_in_half.png"]},
        {b"a.png": GOOD_MASKS["plain"], b"b.png": GOOD_MASKS["plain"]},
    )
    spec = {"class_names": [f"c{i}" for i in range(8)]}
    (root / "dataset.json").write_text(json.dumps(spec))
    assert main([*command, str(root)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("keras-aspp: error: Unreadable or truncated")
    assert "b.png" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_preview_of_odd_names(tmp_path, capsys):
    names = [n for n in NAMES if not n.startswith(b".")]
    root = data_set(
        tmp_path / "data",
        dict.fromkeys(names, GOOD["plain.png"]),
        dict.fromkeys(names, GOOD_MASKS["plain"]),
    )
    spec = {"class_names": ["$\\no$", "<b>", "c\u00e9"]}
    (root / "dataset.json").write_text(json.dumps(spec))
    sheet = tmp_path / "sheet.png"
    assert main(["data", "preview", str(root), "--output", str(sheet)]) == 0
    assert Image.open(sheet).format == "PNG"


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_preview_of_odd_shapes(shape, tmp_path):
    root = data_set(
        tmp_path / "data",
        {b"a.png": corpus.encoded(corpus.noise(*shape), "PNG")},
        {b"a.png": corpus.encoded(np.zeros(shape, "uint8"), "PNG")},
    )
    sheet = tmp_path / "sheet.png"
    assert main(["data", "preview", str(root), "--output", str(sheet)]) == 0
    assert max(Image.open(sheet).size) < 5000


def test_what_cannot_be_read(tmp_path, monkeypatch):
    """As root nothing is unreadable, so the refusal is played."""
    path = tmp_path / "a.png"
    path.write_bytes(GOOD["plain.png"])

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ValueError, match=r"a\.png \(Permission denied\)"):
        decode.read_image(path)


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0,
    reason="root may read everything; see the test above",
)
def test_what_may_not_be_read(tmp_path, capsys):
    path = tmp_path / "a.png"
    path.write_bytes(GOOD["plain.png"])
    path.chmod(0)
    output = str(tmp_path / "out")
    arguments = ["predict", "--model", str(MODEL), "--output", output]
    assert main([*arguments, str(path)]) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_pictures_that_go_away_or_change_during_a_run(tmp_path):
    names = [f"{i}.png".encode() for i in range(4)]
    root = data_set(
        tmp_path / "data",
        dict.fromkeys(names, GOOD["plain.png"]),
        dict.fromkeys(names, GOOD_MASKS["plain"]),
    )
    source = FolderSource(root)
    (root / "images/train/1.png").unlink()
    (root / "images/train/2.png").write_bytes(BAD["cut_in_half.png"])
    (root / "masks/train/3.png").unlink()
    report = check_folder(source)
    assert len(report.problems) == 3
    for name, line in zip(
        "123", sorted(report.problems, key=name_of), strict=True
    ):
        assert f"{name}.png" in line
    assert report.sizes["train"] == {(40, 56): 2}


def name_of(line):
    return re.search(r"(\d)\.png", line)[1]


@pytest.mark.slow
def test_evaluate_names_a_picture_that_went_away(tmp_path, capsys, monkeypatch):
    names = [f"{i}.png".encode() for i in range(3)]
    root = data_set(
        tmp_path / "data",
        dict.fromkeys(names, GOOD["plain.png"]),
        dict.fromkeys(names, GOOD_MASKS["plain"]),
    )
    spec = {"class_names": [f"c{i}" for i in range(8)]}
    (root / "dataset.json").write_text(json.dumps(spec))
    listed = FolderSource.size

    def size(self, split):
        (root / "images/train/1.png").unlink(missing_ok=True)
        return listed(self, split)

    monkeypatch.setattr(FolderSource, "size", size)
    file = tmp_path / "numbers.json"
    arguments = ["--model", str(MODEL), "--data", str(root)]
    arguments += ["--split", "train", "--json", str(file)]
    assert main(["evaluate", *arguments]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1.png (No such file or directory)" in said
    assert not file.exists()


@pytest.fixture(scope="module")
def served():
    """Function of bytes, as in the signature `serve_bytes`."""
    return tf.function(
        decode_bytes, input_signature=[tf.TensorSpec([], tf.string)]
    )


def test_what_a_saved_model_decodes(served):
    """`serve_bytes`: capped by the header, JPEG and PNG alone."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = corpus.encoded(Image.new("L", (20_000, 2_000)), "JPEG")
    for content, message in (
        (BAD["bomb_20000x20000.png"], "at most 16777216 pixels"),
        (BAD["bomb_2147483647.png"], "at most 16777216 pixels"),
        (wide, "at most 16777216 pixels"),
        (BAD["scans_by_the_thousand.jpg"], "at most 100 scans"),
        (BAD["a_gif.png"], "JPEG or PNG"),
        (BAD["a_bmp.png"], "JPEG or PNG"),
        (BAD["a_webp.jpg"], "JPEG or PNG"),
        (BAD["cut_in_half.png"], "PNG"),
        (BAD["header_cut.png"], "PNG"),
        (BAD["garbage_after_magic.jpg"], None),
        (b"", "JPEG or PNG"),
        (b"x", "JPEG or PNG"),
    ):
        with pytest.raises(tf.errors.OpError, match=message):
            served(content)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024  # in kB
    for name in ("plain.png", "plain.jpg", "palette.png"):
        image = decode.read_image(GOOD[name])
        np.testing.assert_array_equal(served(GOOD[name]), image)


def test_a_server_can_check_images_before_it_decodes_them():
    """Each of 5,000 scans, 16 bytes, would repeat all pixels."""
    data = corpus.progressive_bomb(2048, 2048, 5000)
    assert len(data) < 100_000
    start = time.process_time()
    with pytest.raises(ValueError, match="at most 100 scans.*5005"):
        ka.data.check_image_bytes(data)
    assert time.process_time() - start < 0.5  # decoding takes 17 s
    for name in ("bomb_20000x20000.png", "a_gif.png", "a_webp.jpg"):
        with pytest.raises(ValueError, match="pixels|no JPEG or PNG"):
            ka.data.check_image_bytes(BAD[name])
    with pytest.raises(TypeError, match="must be the bytes.*Received: str"):
        ka.data.check_image_bytes("image.png")
    few = corpus.progressive_bomb(30, 40, 90)
    assert ka.data.check_image_bytes(few) == (30, 40)
    assert ka.data.check_image_bytes(GOOD["plain.jpg"]) == (40, 56)


def test_a_jpeg_of_100_scans_is_decoded_and_one_of_101_is_not(served):
    most, more = (corpus.progressive_bomb(8, 8, n) for n in (95, 96))
    assert [data.count(b"\xff\xda") for data in (most, more)] == [100, 101]
    assert ka.data.check_image_bytes(most) == (8, 8)
    assert served(most).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"at most 100 scans.*\(101\)"):
        ka.data.check_image_bytes(more)
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 100"):
        served(more)


def test_marks_of_scans_that_start_none_do_not_count():
    """They occur by chance in what cameras store beside the picture."""
    note = b"\xff\xfe" + (1402).to_bytes(2, "big") + b"\xff\xda" * 700
    plain = GOOD["plain.jpg"]
    image = decode.read_image(plain[:2] + note + plain[2:])
    np.testing.assert_array_equal(image, decode.read_image(plain))


BOUNDED = """
import resource, sys
sys.argv[0] = "keras-aspp"  # whose package loads no TensorFlow
from keras_aspp.data import decode
held = int(open("/proc/self/statm").read().split()[0]) * 4096
limit = held + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in sys.argv[1:]:
    try:
        decode.read_image(name)
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="memory is read from /proc"
)
def test_bombs_in_little_memory(tmp_path):
    """Each would decode to more than the process may have."""
    names = [name for name in BAD if "bomb" in name or "scans" in name]
    for name in names:
        (tmp_path / name).write_bytes(BAD[name])
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, *names],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(names) == 6
    assert "at most 100000000 pixels" in lines[0]
    assert "MemoryError" not in done.stdout + done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


@pytest.mark.slow
def test_twenty_thousand_files_in_a_folder(tmp_path, capsys):
    count = 20_000
    picture = corpus.encoded(corpus.noise(8, 9), "PNG")
    mask = corpus.encoded(np.zeros((8, 9), "uint8"), "PNG")
    names = [f"{i:05d}.png".encode() for i in range(count)]
    root = data_set(
        tmp_path, dict.fromkeys(names, picture), dict.fromkeys(names, mask)
    )
    (root / "images/train/00007.png").write_bytes(b"")
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = ["--data.validation_split", "train"]
    assert main(["data", "check", str(root), *split]) == 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "\n1 problem." in capsys.readouterr().out
    assert time.monotonic() - start < 120
    assert grown < 200 * 1024  # in kB
