"""Memory does not grow with the number of pictures."""

import os
import subprocess
import sys

import pytest
from PIL import Image
from tiny_run import small_segmenter

from keras_aspp.data.spec import DatasetSpec

FEW, MANY = 200, 600
# A decoded picture and its labels are 0.2 MB; held, 80 would be added.
ALLOWED_MB = 20

# In a process of its own: tests before this one have left their mark. oneDNN,
# which is off, would keep the plans of a thousand sizes.
PROGRAM = """
import resource, sys
from pathlib import Path
from keras_aspp.inference.files import predict_files
from keras_aspp.data.folder import FolderSource
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.inference import Predictor

model, root = sys.argv[1:]
few, many = {few}, {many}
held = {{}}

def note(done, total):
    if done in (few, many):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held[done] = pages * resource.getpagesize() / 1e6

predictor, source = Predictor(model), FolderSource(root)
evaluate(predictor, source, "val", batch_size=4, progress=note)
print("evaluate", held[many] - held[few])
images = [image for image, _ in source.pairs["val"]]
for done in range(0, many, few):
    predict_files(predictor, images[done : done + few], root + "/out")
    note(done + few, many)
print("predict", held[many] - held[few])
"""


@pytest.fixture(scope="module")
def many_pictures(tmp_path_factory):
    """Each of a size of its own, so that none makes a batch with another."""
    root = tmp_path_factory.mktemp("many")
    for part in ("images", "masks"):
        (root / part / "val").mkdir(parents=True)
    for i in range(MANY):
        height, width = 128 + i % 32, 192 + i // 32
        for part, mode in (("images", "RGB"), ("masks", "L")):
            path = root / part / "val" / f"{i:05d}.png"
            Image.new(mode, (width, height), i % 3).save(path, compress_level=1)
    DatasetSpec(["ground", "box", "bar"]).to_file(root / "dataset.json")
    return root


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="reads /proc (2026-11-25)",
)
def test_memory_stays_flat(many_pictures, tmp_path):
    path = tmp_path / "model.keras"
    small_segmenter(0.0).save(path)
    done = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM.format(few=FEW, many=MANY)),
            *(str(path), str(many_pictures)),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
    )
    assert done.returncode == 0, done.stderr
    grown = dict(line.split() for line in done.stdout.splitlines()[-2:])
    assert float(grown["evaluate"]) < ALLOWED_MB
    assert float(grown["predict"]) < ALLOWED_MB
