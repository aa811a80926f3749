import itertools
import pathlib
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_aspp.data.datasets import multiscale_shapes as shapes

FEW = {"train": 5, "validation": 2, "test": 3}
FIGURES = shapes.CLASS_NAMES[1:]


class MultiscaleShapesTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = shapes.MultiscaleShapes
    SPLITS = FEW
    # Nothing is read from it, but TFDS insists on a folder that exists.
    EXAMPLE_DIR = str(pathlib.Path(__file__).parent)

    def setUp(self):
        few = mock.patch.object(self.DATASET_CLASS, "NUM_EXAMPLES", FEW)
        few.start()
        self.addCleanup(few.stop)
        super().setUp()


@pytest.fixture(scope="module")
def scenes():
    return [
        shapes.draw_scene(np.random.default_rng([3, i])) for i in range(300)
    ]


def ks_distance(a, b):
    """Largest gap between two empirical distribution functions."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    return np.abs(
        np.searchsorted(a, both, side="right") / len(a)
        - np.searchsorted(b, both, side="right") / len(b)
    ).max()


def ks_limit(a, b):
    """Exceeded by one in 1000 pairs of samples of one distribution."""
    return 1.95 * np.sqrt(1 / len(a) + 1 / len(b))


@pytest.mark.parametrize(
    "data_set, side",
    [(shapes.MultiscaleShapes, 128), (shapes.MultiscaleShapesLarge, 256)],
)
def test_stored_examples_are_the_drawn_ones(
    data_set, side, tmp_path, monkeypatch
):
    monkeypatch.setattr(data_set, "NUM_EXAMPLES", FEW)
    builder = data_set(data_dir=tmp_path)
    builder.download_and_prepare()
    stored = {
        example["id"].decode(): example
        for split in FEW
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }
    assert len(stored) == sum(FEW.values())
    for name, seed in {"train_00004": [0, 4], "test_00001": [2, 1]}.items():
        drawn = shapes.draw_scene(np.random.default_rng(seed), side)
        assert drawn["image"].shape == (side, side, 3)
        for key in ("image", "segmentation_mask", "instances"):
            np.testing.assert_array_equal(stored[name][key], drawn[key])
        for key in ("kind", "size_px", "visible_px"):
            expected = np.array([figure[key] for figure in drawn["objects"]])
            np.testing.assert_allclose(
                stored[name]["objects"][key], expected, rtol=1e-6
            )
    names = builder.info.features["objects"]["kind"].names
    assert tuple(names) == shapes.CLASS_NAMES


def test_numbers_of_examples():
    counts = shapes.MultiscaleShapes.NUM_EXAMPLES
    assert counts == {"train": 2400, "validation": 300, "test": 300}


def test_figures_grow_with_the_image():
    small, large = (
        [
            figure
            for i in range(100)
            for figure in shapes.draw_scene(
                np.random.default_rng([3, i]), side
            )["objects"]
        ]
        for side in (128, 256)
    )
    low, high = (
        sorted(figure["size_px"] for figure in figures)
        for figures in (small, large)
    )
    assert 18 <= high[0] and high[-1] <= 192
    assert ks_distance(np.multiply(low, 2), high) < ks_limit(low, high)
    shares = [
        np.sum([figure["visible_px"] for figure in figures]) / side**2
        for figures, side in ((small, 128), (large, 256))
    ]
    assert 0.9 < shares[1] / shares[0] < 1.1


def test_same_seed_same_scene_other_index_other_scene():
    once, again, other = (
        shapes.draw_scene(np.random.default_rng([0, i])) for i in (7, 7, 8)
    )
    assert once["objects"] == again["objects"]
    for key in ("image", "segmentation_mask", "instances"):
        np.testing.assert_array_equal(once[key], again[key])
    assert np.mean(once["image"] != other["image"]) > 0.9


def test_global_seed_is_not_used():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    shapes.draw_scene(np.random.default_rng(0))
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_masks_and_objects_agree(scenes):
    seen = set()
    for scene in scenes:
        mask, instances = scene["segmentation_mask"], scene["instances"]
        assert scene["image"].shape == (128, 128, 3)
        assert mask.shape == instances.shape == (128, 128, 1)
        for key in ("image", "segmentation_mask", "instances"):
            assert scene[key].dtype == np.uint8
        figures = scene["objects"]
        assert 1 <= len(figures) <= shapes.MAX_FIGURES
        assert set(np.unique(instances)) - {0} == set(
            range(1, len(figures) + 1)
        )
        np.testing.assert_array_equal(mask == 0, instances == 0)
        for number, figure in enumerate(figures, start=1):
            seen.add(figure["kind"])
            assert np.all(mask[instances == number] == figure["kind"])
            assert figure["visible_px"] == np.sum(instances == number)
    assert seen == set(range(1, len(shapes.CLASS_NAMES)))


def test_sizes_are_log_uniform_over_ten_times(scenes):
    figures = [figure for scene in scenes for figure in scene["objects"]]
    sizes = np.array([figure["size_px"] for figure in figures])
    low, high = shapes.SIZES_PX
    assert high / low > 10
    assert low <= sizes.min() and sizes.max() <= high
    # Large figures are the harder ones to place: they must not get lost.
    levels = np.log(sizes / low) / np.log(high / low)
    assert ks_distance(levels, np.linspace(0, 1, 10_000)) < 0.06
    # Every kind comes in every size: the size tells nothing either.
    kinds = np.array([figure["kind"] for figure in figures])
    for kind in range(1, len(shapes.CLASS_NAMES)):
        one, others = sizes[kinds == kind], sizes[kinds != kind]
        assert ks_distance(one, others) < ks_limit(one, others)


def test_enough_of_every_figure_is_visible(scenes):
    shares = np.array(
        [
            figure["visible_px"]
            / shapes.draw_outline(
                shapes.CLASS_NAMES[figure["kind"]], figure["size_px"]
            ).sum()
            for scene in scenes
            for figure in scene["objects"]
        ]
    )
    assert shares.min() > shapes.MIN_VISIBLE - 0.05  # whole pixels, small ones
    assert 0.02 < np.mean(shares < 0.8) < 0.3  # occlusion does occur
    assert shares.max() < 1.2


def patch_statistics(scenes):
    """Mean colour and local contrast of a 3 x 3 patch of each region.

    Off the edges, which are mixed of two regions. One patch a region, since
    large and small regions average over much and little.

    Returns:
        float arrays `(regions, 4)` of red, green, blue, standard deviation:
        of the backgrounds and of the figures.
    """
    rng = np.random.default_rng(0)
    background, figures = [], []
    for scene in scenes:
        windows = np.lib.stride_tricks.sliding_window_view(
            scene["instances"][..., 0], (5, 5)
        )
        whole = windows.min((2, 3)) == windows.max((2, 3))
        for number in range(len(scene["objects"]) + 1):
            places = np.argwhere(whole & (windows[..., 0, 0] == number))
            if not len(places):
                continue
            y, x = rng.choice(places)
            patch = scene["image"][y + 1 : y + 4, x + 1 : x + 4].reshape(9, 3)
            statistics = [*patch.mean(0), patch.std(0).mean()]
            (figures if number else background).append(statistics)
    return np.array(background), np.array(figures)


def test_texture_tells_nothing(scenes):
    background, figures = patch_statistics(scenes)
    assert len(background) == len(scenes) and len(figures) > 700
    spread = figures.std(0)
    assert np.all(spread > [40, 40, 40, 10])
    difference = np.abs(figures.mean(0) - background.mean(0))
    assert np.all(difference < 0.2 * spread), difference / spread
    for a, b in zip(background.T, figures.T, strict=True):
        assert ks_distance(a, b) < ks_limit(a, b)


def test_any_texture_may_be_the_background():
    # Fitted to five others, a texture is flatter than one drawn freely: only
    # the shuffling keeps this from the order. Judged by the spread of colours.
    spreads = np.array(
        [
            [texture.std((1, 2)).mean() for texture in textures]
            for textures in (
                shapes.draw_textures(np.random.default_rng(i), 6)
                for i in range(300)
            )
        ]
    )
    first, last = spreads[:, 0], spreads[:, 3:].ravel()
    assert ks_distance(first, last) < ks_limit(first, last)


def test_neighbours_contrast():
    textures = shapes.draw_textures(np.random.default_rng(4), 6)
    means = [t.reshape(3, 32, 4, 32, 4).mean((2, 4)) for t in textures]
    for a, b in itertools.combinations(means, 2):
        distance = np.sqrt(np.square(a - b).sum(0))
        assert distance.shape == (32, 32)
        assert distance.min() >= shapes.MIN_CONTRAST - 1e-3


@pytest.mark.parametrize(
    "kind, area",
    [
        ("circle", np.pi / 4),
        ("square", 1 / 2),
        ("triangle", 3 * 3**0.5 / 16),
        ("ring", np.pi / 4 * (1 - 0.55**2)),
    ],
)
def test_outline_has_the_area_of_its_figure(kind, area):
    coverage = shapes.draw_outline(kind, 70.0, angle=0.4, shift=(0.3, -0.2))
    assert coverage.shape == (72, 72)
    assert 0 <= coverage.min() and coverage.max() <= 1
    np.testing.assert_allclose(coverage.sum(), area * 70**2, rtol=0.005)


@pytest.mark.parametrize("kind", FIGURES)
def test_size_is_the_diameter_of_the_enclosing_circle(kind):
    coverage = shapes.draw_outline(kind, 60.0, angle=1.0)
    y, x = np.nonzero(coverage > 0)
    reach = np.hypot(y - 30.5, x - 30.5).max()
    assert 29 < reach < 30.75


def test_shift_and_angle_move_the_outline():
    plain = shapes.draw_outline("star", 40.0)
    moved = shapes.draw_outline("star", 40.0, shift=(0.5, -0.25))
    positions = np.mgrid[: len(plain), : len(plain)]
    before, after = (
        np.sum(positions * c, axis=(1, 2)) / c.sum() for c in (plain, moved)
    )
    np.testing.assert_allclose(after - before, [0.5, -0.25], atol=0.05)
    turned = shapes.draw_outline("star", 40.0, angle=0.6)
    assert np.mean(np.abs(turned - plain)) > 0.05


@pytest.mark.parametrize("size_px", [shapes.SIZES_PX[0], 48.0])
def test_kinds_differ_in_outline(size_px):
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    turned = {
        kind: np.array(
            [shapes.draw_outline(kind, size_px, a) >= 0.5 for a in angles]
        )
        for kind in FIGURES
    }
    for one, other in itertools.combinations(FIGURES, 2):
        fixed, all_turns = turned[one][0], turned[other]
        overlap = np.sum(fixed & all_turns, axis=(1, 2))
        union = np.sum(fixed | all_turns, axis=(1, 2))
        assert np.max(overlap / union) < 0.85, (one, other)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"Received: class_name='blob'"):
        shapes.draw_outline("blob", 20.0)
