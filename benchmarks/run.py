"""Benchmark: keras_aspp and its peers do the same work in one run, alternately.

    python -m benchmarks                        # everything
    python -m benchmarks train_step aspp_33     # some of it
    python -m benchmarks --list
    python -m benchmarks runtimes               # see benchmarks/runtimes.py
    python -m benchmarks --smoke                # without peers
    python -m benchmarks train_step --profile ours   # by operation
    KERAS_BACKEND=jax python -m benchmarks      # on a GPU

Each side is a process of its own, so that its peak memory is its own. After a
first step apart (compiling) and one of warm-up, the sides take turns, one step
at a time, so that other load on the machine affects all sides. Peers come with
`pip install -e '.[peers]'`; KERAS_ASPP_SHARED says where CamVid lies.
Results are written to benchmarks/results/, one file for each comparison.
"""

import argparse
import collections
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workloads import COMPARISONS
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import write_json

PACKAGES = (
    *("tensorflow", "keras", "keras-hub", "keras-cv", "torch", "jax"),
    *("ai-edge-litert", "onnxruntime", "openvino"),
)
RESULTS = Path("benchmarks/results")


def run(arguments):
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("comparisons", nargs="*", metavar="COMPARISON")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="the short ones, nothing written; status 1 if a target is missed",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument(
        "--profile", metavar="SIDE", help="where a step of this side goes"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    unknown = [name for name in flags.comparisons if name not in COMPARISONS]
    if unknown:
        raise InputError(
            f"COMPARISON must be of {', '.join(COMPARISONS)}. "
            f"Received: {' '.join(unknown)}"
        )
    if flags.rounds < 1:
        raise InputError(f"`--rounds` must be > 0. Received: {flags.rounds}")
    if flags.side is not None:
        return serve(COMPARISONS[flags.comparisons[0]].sides[flags.side])
    if flags.profile is not None:
        return profile(flags.comparisons, flags.profile)
    if flags.list:
        for name, comparison in COMPARISONS.items():
            print(f"{name:22} {comparison.what}: {', '.join(comparison.sides)}")
        return 0
    if flags.smoke:
        return smoke(flags.rounds)
    flags.output.mkdir(parents=True, exist_ok=True)
    everything = [
        name
        for name, comparison in COMPARISONS.items()
        if comparison.gpu == bool(gpu())
    ]
    for name in flags.comparisons or everything:
        result = compare(name, flags.rounds)
        report(result)
        write_json(
            flags.output / f"{name}_{slug(result['device'])}.json", result
        )
    return 0


def smoke(rounds):
    """Runs what takes seconds.

    Raises:
        ValueError: ours is not faster.
    """
    missed = []
    for name, comparison in COMPARISONS.items():
        if comparison.smoke:
            result = compare(name, rounds)
            report(result)
            missed += [name for t in result["targets"] if not t["met"]]
    if missed:
        raise InputError(
            f"Ours must be at most as slow. Received: {', '.join(missed)}"
        )
    return 0


def compare(name, rounds):
    """Lets the sides of a comparison take turns.

    Args:
        name: key of `COMPARISONS`.
        rounds: int > 0, timed steps of each side.

    Returns:
        dict, the contents of a result file.

    Raises:
        ValueError: a side failed; the message is its own.
    """
    comparison = COMPARISONS[name]
    sides = {}
    try:
        for side in comparison.sides:
            sides[side] = _Side(name, side)
        for side in sides.values():
            side.ask("step")
        seconds = {side: [] for side in sides}
        for _ in range(rounds):
            for side, process in sides.items():
                seconds[side].append(process.ask("step")["seconds"])
        peaks = {side: process.ask("peak") for side, process in sides.items()}
    finally:
        for process in sides.values():
            process.close()
    found = {}
    for side, process in sides.items():
        median = statistics.median(seconds[side])
        found[side] = {
            "seconds": seconds[side],
            "median_seconds": median,
            **process.facts,
            **peaks[side],
        }
        if process.facts["madds"]:
            rate = 2e-9 * process.facts["madds"] / median
            found[side]["gflop_per_second"] = rate
        if process.facts["images"]:
            rate = process.facts["images"] / median
            found[side]["images_per_second"] = rate
    return {
        "comparison": name,
        "what": comparison.what,
        "sides": found,
        "targets": [measured(t, found) for t in comparison.targets],
        **circumstances(),
    }


def measured(target, found):
    """A target beside what was measured."""
    key = {"seconds": "median_seconds"}.get(target.of, target.of)
    share = found[target.side][key] / found[target.other][key]
    return {
        "side": target.side,
        "other": target.other,
        "of": target.of,
        "at_most": target.share,
        "measured": share,
        "met": share <= target.share,
    }


def circumstances():
    """Date, machine and versions of a measurement."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def gpu():
    """Name of the first GPU, or `None`."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.check_output(query, text=True).splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def device():
    """Name of the GPU, or of the processor and what it multiplies with."""
    if gpu():
        return gpu()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name, flags = facts.get("model name", "CPU"), facts.get("flags", "").split()
    for flag in ("avx512_bf16", "avx512f", "avx2"):
        if flag in flags:
            return f"{name} {flag}"
    return name


def commit():
    """Short hash of the commit, with a + where files have changed."""
    try:
        head, status = (
            subprocess.check_output(["git", *words], text=True).strip()
            for words in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--", "keras_aspp", "training"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "+" * bool(status)


class _Side:
    """A side of a comparison, in a process of its own.

    Args:
        comparison: key of `COMPARISONS`.
        side: key of its sides.

    Attributes:
        facts: dict: what its first, compiling step took, and what it counts.
    """

    def __init__(self, comparison, side):
        self.name = f"{comparison}: {side}"
        self.said = tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", "benchmarks", comparison]
        self.process = subprocess.Popen(
            [*command, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        )
        self.facts = self._answer()

    def ask(self, word):
        """One request; the answer is a dict."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.said.seek(0)
            said = self.said.read().strip().splitlines()
            raise InputError(f"{self.name} failed: {(said or ['?'])[-1]}")
        return json.loads(line)


def serve(make):
    """Runs a side's process: one step for each line on its input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed

    def answer(content):
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    begun = time.perf_counter()
    work = make()
    built = time.perf_counter()
    work.step()
    first = time.perf_counter() - built
    answer(
        {
            "build_seconds": built - begun,
            "first_step_seconds": first,
            "images": work.images,
            "madds": work.madds,
        }
    )
    for word in map(str.strip, sys.stdin):
        if word == "peak":
            answer({"peak_bytes": peak_bytes()})
            continue
        begun = time.perf_counter()
        work.step()
        answer({"seconds": time.perf_counter() - begun})
    return 0


def peak_bytes():
    """Most memory this process has held: on its GPU, or else of the host."""
    for module, measure in (
        ("jax", lambda m: m.devices()[0].memory_stats()["peak_bytes_in_use"]),
        ("torch", lambda m: m.cuda.max_memory_allocated()),
    ):
        if gpu() and module in sys.modules:
            return measure(sys.modules[module])
    # Not ru_maxrss, which begins at what the process held that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


def profile(comparisons, side):
    """Prints what operations take in one step, by kind and by part.

    A part is a layer of the model, such as its backbone or its ASPP.

    Operations overlap, so the sum is more than the step.

    Raises:
        ValueError: not one comparison, or it has no such side.
    """
    if len(comparisons) != 1 or side not in COMPARISONS[comparisons[0]].sides:
        raise InputError(
            "`--profile` needs one COMPARISON and one of its sides. Received: "
            f"{' '.join(comparisons)}, --profile {side!r}"
        )
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    work = COMPARISONS[comparisons[0]].sides[side]()
    for _ in range(3):
        begun = time.perf_counter()
        work.step()
    print(f"a step: {time.perf_counter() - begun:.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            work.step()
        (file,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    took, count, parts = (collections.Counter() for _ in range(3))
    for plane in space.planes:
        names = {key: m.name for key, m in plane.event_metadata.items()}
        for event in (e for line in plane.lines for e in line.events):
            path, colon, kind = names[event.metadata_id].partition(":")
            if colon and kind[:1].isalpha() or kind[:4] == "_Mkl":
                took[kind] += event.duration_ps / 1e12
                count[kind] += 1
                parts[part_of(path)] += event.duration_ps / 1e12
    total = sum(took.values())
    for kind, seconds in took.most_common(20):
        print(f"{seconds:8.3f} s {seconds / total:5.1%} {count[kind]:5} {kind}")
    print()
    for part, seconds in parts.most_common(20):
        print(f"{seconds:8.3f} s {seconds / total:5.1%} {part}")
    return 0


def part_of(operation):
    """Returns the layer of the model that a TensorFlow operation belongs to.

    Keras' paths are `model/layer/...`, gradients the same behind
    `gradient_tape/`; a number at the end of a name tells calls apart.

    Args:
        operation: str, name of the operation.
    """
    path = operation.removeprefix("gradient_tape/").split("/")
    if len(path) < 3 or path[0] == "compile_loss":
        return "the rest: loss, optimizer, labels"
    return re.sub(r"_\d+$", "", path[1])


def report(result):
    """Prints a result."""
    print(f"\n{result['comparison']}: {result['what']}")
    for name, side in result["sides"].items():
        seconds = sorted(side["seconds"])
        line = f"  {name:24} {side['median_seconds']:8.3f} s"
        line += f"  ({seconds[0]:.3f} to {seconds[-1]:.3f})"
        line += f"  first {side['first_step_seconds']:.1f} s"
        line += f"  {side['peak_bytes'] / 2**30:.2f} GiB"
        if "gflop_per_second" in side:
            line += f"  {side['gflop_per_second']:.0f} GFLOP/s"
        if "images_per_second" in side:
            line += f"  {side['images_per_second']:.1f} images/s"
        print(line)
    for target in result["targets"]:
        verdict = "met" if target["met"] else "missed"
        print(
            f"  {target['side']} / {target['other']}, {target['of']}: "
            f"{target['measured']:.2f}, target {target['at_most']:.2f}: "
            f"{verdict}"
        )
    sys.stdout.flush()


def slug(text):
    """Text as a file name."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return "_".join(words)
