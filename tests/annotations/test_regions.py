"""Polygons cover the pixels that COCO's own tools and geometry say."""

import matplotlib.path
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from keras_aspp.annotations.regions import Polygons, uncompress_counts

SIZE = (70, 80)


def star(seed, center=(40, 35)):
    """An outline float `[N, 2]` of (x, y) that does not cross itself."""
    rng = np.random.default_rng(seed)
    count = rng.integers(4, 12)
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    spokes = rng.uniform(5, 30, count)[:, None]
    return center + spokes * np.stack([np.cos(angles), np.sin(angles)], -1)


def drawn(*rings, **arguments):
    return Polygons(class_name="a", rings=rings, **arguments).mask(SIZE)


def contains_centers(ring):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    points = np.stack([columns.ravel(), rows.ravel()], -1)
    return matplotlib.path.Path(ring).contains_points(points).reshape(SIZE)


@pytest.mark.parametrize("center", [(40, 35), (2, 66)], ids=["inside", "cut"])
def test_polygons_equal_those_of_pycocotools(center):
    for seed in range(20):
        rings = [star(seed, center), star(seed + 100, center)]
        flat = [ring.ravel().tolist() for ring in rings]
        parts = coco_mask.decode(coco_mask.frPyObjects(flat, *SIZE))
        wanted = parts.any(axis=-1)
        assert 0.01 < wanted.mean() < 0.9
        np.testing.assert_array_equal(drawn(*rings), wanted)


def test_a_pixel_is_covered_if_its_center_is_to_a_fifth_of_a_pixel():
    for seed in range(20):
        ring = star(seed)
        differs = drawn(ring) != contains_centers(ring)
        rows, columns = np.nonzero(differs)
        points = np.stack([columns, rows], -1)[:, None] + 0.5  # (N, 1, 2)
        sides = np.roll(ring, -1, axis=0) - ring
        along = ((points - ring) * sides).sum(-1) / (sides**2).sum(-1)
        nearest = ring + np.clip(along, 0, 1)[..., None] * sides
        distances = np.linalg.norm(points - nearest, axis=-1).min(axis=1)
        assert distances.max(initial=0) < 0.25


def test_integer_corners_cover_the_half_open_box():
    wanted = np.zeros(SIZE, bool)
    wanted[2:5, 3:9] = True
    box = [[3, 2], [9, 2], [9, 5], [3, 5]]
    np.testing.assert_array_equal(drawn(box), wanted)
    relative = np.array(box) / SIZE[::-1]
    np.testing.assert_array_equal(drawn(relative, is_relative=True), wanted)
    np.testing.assert_array_equal(drawn(box[::-1]), wanted)


def test_holes_are_cut_out():
    outer = [[10, 10], [30, 10], [30, 30], [10, 30]]
    inner = [[15, 18], [20, 18], [20, 25], [15, 25]]
    wanted = drawn(outer)
    wanted[18:25, 15:20] = False
    np.testing.assert_array_equal(drawn(outer, holes=[inner]), wanted)


def test_compressed_run_lengths_are_those_of_pycocotools():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mask = np.asfortranarray(rng.random((37, 53)) < rng.random(), "uint8")
        mask[:, 10:40] = seed % 2  # long runs, of several characters
        counts = uncompress_counts(coco_mask.encode(mask)["counts"])
        values = np.repeat(np.arange(len(counts)) % 2, counts)
        np.testing.assert_array_equal(values, mask.T.ravel())
