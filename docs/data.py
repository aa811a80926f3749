"""Measures the numbers of docs/data.md: images per second, and memory.

python -m docs.data speed --count 2000
python -m docs.data evaluate --count 20000   # or predict
python -m docs.data scene --size 20000 20000
python -m docs.data curves --count 60 --size 128 128 --output curves
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from keras_aspp.data.convert import convert_folder
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tfds import TfdsSource
from keras_aspp.inference import files
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.files import write_json


def write_images(root, count, size, distinct=50):
    """Writes a folder data set of `count` files, `distinct` of them unique."""
    rng = np.random.default_rng(0)
    height, width = size
    contents = []
    for _ in range(min(count, distinct)):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), "uint8")
        image = Image.fromarray(coarse).resize((width, height))
        labels = Image.fromarray(coarse[..., 0] % 3).resize((width, height), 0)
        contents.append((image, labels))
    for part in ("images", "masks"):
        (root / part / "val").mkdir(parents=True)
    for i in range(count):
        image, labels = contents[i % len(contents)]
        name = f"{i:07d}"
        image.save(root / "images/val" / f"{name}.jpg", quality=90)
        labels.save(root / "masks/val" / f"{name}.png")
    DatasetSpec(["a", "b", "c"]).to_file(root / "dataset.json")
    return root


def forget_cached_pages(root):
    """Drops files from the page cache, so that they are read from the disk."""
    for path in root.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def images_per_second(dataset, count):
    """Returns the images per second of one pass over a data set."""
    start = time.perf_counter()
    seen = sum(1 for _ in dataset)
    if seen != count:
        raise ValueError(f"{count} images expected. Received: {seen}")
    return count / (time.perf_counter() - start)


def speed(count, size):
    """Prints the speed of each way to read; files come from the disk."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from keras_aspp.data import pipeline
    from keras_aspp.data.augment import AugmentConfig

    tfds.disable_progress_bar()
    # As for a data set that does not fit into memory.
    pipeline.CACHE_BYTES = 0
    with tempfile.TemporaryDirectory() as work:
        root = write_images(Path(work) / "set", count, size)
        source = FolderSource(root)
        start = time.perf_counter()
        output = Path(work) / "records"
        convert_folder(source, output, num_shards=8)
        seconds = time.perf_counter() - start
        print(f"convert             {count / seconds:8.0f} images/s")
        shards = sorted(output.glob("*.tfrecord*"))
        megabytes = sum(path.stat().st_size for path in shards) / 1e6
        print(f"{count} images, {megabytes:.0f} MB in {len(shards)} shards")

        def report(name, folder, make):
            rate = 0
            for _ in range(3):  # The best of three, since other work may run.
                dataset = make()
                forget_cached_pages(folder)
                rate = max(rate, images_per_second(dataset, count))
            print(
                f"{name:22}{rate:8.0f} images/s "
                f"{rate / count * megabytes:8.0f} MB/s"
            )

        def blocks():
            for path in shards:
                with open(path, "rb", buffering=0) as file:
                    while file.read(2**20):
                        pass
            yield from range(count)

        def files():
            for pair in source.pairs["val"]:
                yield [Path(path).read_bytes() for path in pair]

        records = TfdsSource(output)
        report("the disk, 1 MB reads", output, blocks)
        report("files, undecoded", root, files)
        for name, make in (
            ("records, in order", lambda: records.records("val").enumerate()),
            ("records, shuffled", lambda: records.shuffled("val", 1)),
        ):
            # In batches of a hundred, since each call into Python costs time.
            report(
                name,
                output,
                lambda make=make: (
                    one
                    for some in make()
                    .map(lambda number, record: tf.strings.length(record[0]))
                    .batch(100)
                    .as_numpy_iterator()
                    for one in some
                ),
            )
        for name, where, data in (
            ("folder", root, source),
            ("records", output, records),
        ):
            report(
                f"{name}, evaluation",
                where,
                lambda data=data: (
                    one
                    for batch, _ in pipeline.evaluation_dataset(data, "val", 8)
                    for one in batch
                ),
            )
            report(
                f"{name}, training",
                where,
                lambda data=data: (
                    one
                    for batch, _ in pipeline.training_dataset(
                        data,
                        "val",
                        AugmentConfig(),
                        (320, 320),
                        8,
                        lambda image: image,
                    ).take(count // 8)
                    for one in batch
                ),
            )


def resident_mb():
    """Returns the resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def memory(count, size, what):
    """Prints the resident memory after each tenth of the images."""
    import keras_aspp as ka
    from keras_aspp.cli import predict
    from keras_aspp.engine.evaluate import evaluate

    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        root = write_images(work / "set", count, size)
        ka.models.LRASPP(3, "mobilenet_v3_small", backbone_weights=None).save(
            work / "model.keras"
        )
        predictor = ka.Predictor(work / "model.keras")
        shown = set()

        def show(done, total):
            tenth = done * 10 // total
            if tenth not in shown:
                shown.add(tenth)
                print(f"{done:8} {resident_mb():8.1f} MB", flush=True)

        source = FolderSource(root)
        show(0, count)
        if what == "evaluate":
            evaluate(predictor, source, "val", progress=show)
            return
        images = [image for image, _ in source.pairs["val"]]
        predict.show_progress = show
        files.predict_files(predictor, images, work / "predicted")


def write_curves(root, count, size):
    """Writes a binary data set: curves 1 to 3 pixels wide on noise.

    Every sixth image is for validation.
    """
    rng = np.random.default_rng(0)
    height, width = size
    rows = np.arange(height)
    for i in range(count):
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        wave = rng.uniform(0.1, 0.25) * width
        columns = wave * np.sin(rows / rng.uniform(8, 20) + rng.uniform(0, 6))
        columns += rng.uniform(0.3, 0.7) * width
        line = list(zip(columns.tolist(), rows.tolist(), strict=True))
        draw.line(line, fill=255, width=int(rng.integers(1, 4)))
        noise = rng.integers(0, 160, (height, width, 3))
        noise[np.asarray(mask) > 0] += 60
        split = "val" if i % 6 == 0 else "train"
        for part, content in (
            ("images", Image.fromarray(noise.astype("uint8"))),
            ("masks", mask),
        ):
            (root / part / split).mkdir(parents=True, exist_ok=True)
            content.save(root / part / split / f"{i:04d}.png")
    write_json(
        root / "dataset.json", {"class_names": ["curve"], "task": "binary"}
    )


def scene(size):
    """Prints time and peak memory of a raster of four bands of uint16."""
    import rasterio

    import keras_aspp as ka
    from keras_aspp.config.schema import ModelConfig
    from keras_aspp.inference.scenes import predict_scene
    from keras_aspp.models.factory import build_model

    config = ModelConfig(
        architecture="lr_aspp",
        backbone="mobilenet_v3_small",
        backbone_weights=None,
    )
    pixels = PixelFormat(4, "uint16", (0, 4000))
    rng, (height, width) = np.random.default_rng(0), size
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        build_model(config, 5, pixels=pixels).save(work / "model.keras")
        profile = {
            "driver": "GTiff",
            "height": height,
            "width": width,
            "count": 4,
            "dtype": "uint16",
            "crs": "EPSG:32633",
            "transform": rasterio.transform.from_origin(5e5, 5.4e6, 10, 10),
            "tiled": True,
        }
        with rasterio.open(work / "scene.tif", "w", **profile) as to:
            for top in range(0, height, 256):
                rows = min(256, height - top)
                values = rng.integers(0, 4000, (4, rows, width), "uint16")
                window = rasterio.windows.Window(0, top, width, rows)
                to.write(values, window=window)
        predictor = ka.Predictor(work / "model.keras")
        start = time.perf_counter()
        predict_scene(predictor, work / "scene.tif", work / "labels.tif")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{height}x{width}  {seconds:.0f} s  {peak / 1e9:.2f} GB at most")


def main():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=("speed", "evaluate", "predict", "scene", "curves")
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, default=(376, 504))
    parser.add_argument("--output", type=Path, help="folder of curves")
    flags = parser.parse_args()
    if flags.what == "speed":
        speed(flags.count, flags.size)
    elif flags.what == "scene":
        scene(flags.size)
    elif flags.what == "curves":
        write_curves(flags.output, flags.count, flags.size)
    else:
        memory(flags.count, flags.size, flags.what)


if __name__ == "__main__":
    main()
