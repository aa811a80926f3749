"""Memory does not grow with the number of pictures."""

import subprocess
import sys

import pytest
from PIL import Image
from tiny_run import toy_segmenter

from keras_aspp.data.spec import DatasetSpec

# The first thousand sizes also fill oneDNN's cache of plans, one for each size.
FEW, MANY = 1000, 3000
# A decoded picture and its labels are 0.09 MB; held, 180 would be added.
ALLOWED_MB = 60

# In a process of its own: tests before this one have left their mark.
PROGRAM = """
import resource, sys
from pathlib import Path
from keras_aspp.inference.files import predict_files
from keras_aspp.data.folder import FolderSource
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.inference import Predictor

what, model, root = sys.argv[1:]
few, many = {few}, {many}
held = {{}}

def note(done, total):
    if done in (few, many):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held[done] = pages * resource.getpagesize() / 1e6

predictor, source = Predictor(model), FolderSource(root)
if what == "evaluate":
    evaluate(predictor, source, "val", batch_size=4, progress=note)
else:
    images = [image for image, _ in source.pairs["val"]]
    for done in range(0, many, few):
        predict_files(predictor, images[done : done + few], root + "/out")
        note(done + few, many)
print(held[many] - held[few])
"""


@pytest.fixture(scope="module")
def many_pictures(tmp_path_factory):
    """Each of a size of its own, so that none makes a batch with another."""
    root = tmp_path_factory.mktemp("many")
    for part in ("images", "masks"):
        (root / part / "val").mkdir(parents=True)
    for i in range(MANY):
        height, width = 64 + i % 64, 96 + i // 64
        for part, mode in (("images", "RGB"), ("masks", "L")):
            path = root / part / "val" / f"{i:05d}.png"
            Image.new(mode, (width, height), i % 3).save(path, compress_level=1)
    DatasetSpec(["ground", "box", "bar"]).to_file(root / "dataset.json")
    return root


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="reads /proc (2026-11-25)",
)
@pytest.mark.parametrize("what", ["evaluate", "predict"])
def test_memory_stays_flat(many_pictures, what, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM.format(few=FEW, many=MANY),
            what,
            toy_segmenter(tmp_path),
            str(many_pictures),
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < ALLOWED_MB
