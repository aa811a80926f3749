"""Sliding windows, scales and mirror images, by hand."""

import itertools

import forked
import numpy as np
import pytest

import keras_aspp as ka
from keras_aspp.data.resize import resize_image
from keras_aspp.inference.runtimes import Runtime
from keras_aspp.inference.sliding_window import SlidingWindow, spans, weights
from keras_aspp.inference.tta import MultiScale
from keras_aspp.models import DeepLabV3Plus

RNG = np.random.default_rng(4)


class Engine(Runtime):
    """Scores that depend on the pixel alone, and remember what was asked."""

    num_classes = 3
    smallest_side = output_stride = 1

    def __init__(self):
        self.sizes = []

    def scores(self, images):
        self.sizes.append(images.shape[1:3])
        return np.asarray(images, "float32") / 50


def picture(*size):
    return RNG.integers(0, 256, (2, *size, 3)).astype("uint8")


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "size, window, overlap",
    [(10, 4, 0.25), (10, 4, 0.0), (9, 9, 0.5), (3, 9, 0.5), (100, 7, 0.9)],
)
def test_spans_cover_an_axis(size, window, overlap):
    found = spans(size, window, overlap)
    seen = np.zeros(size, int)
    for span in found:
        seen[span] += 1
        assert span.stop - span.start == min(window, size)
    assert seen.min() == 1 or overlap > 0
    assert seen.min() >= 1
    assert found[-1].stop == size


def test_pieces_are_put_together():
    engine, images = Engine(), picture(21, 30)
    scores = SlidingWindow(engine, 8, 0.5).scores(images)
    assert set(engine.sizes) == {(8, 8)}
    # What looks at its own pixel alone is the same from every piece.
    np.testing.assert_allclose(
        np.exp(scores), softmax(images / 50.0), rtol=1e-4
    )


@pytest.mark.parametrize(
    "size, window, overlap, align",
    [(75, 32, 0.25, 1), (75, 32, 0.25, 8), (75, 32, 0.7, 8), (33, 32, 0, 16)],
)
def test_weights_of_windows_sum_to_one(size, window, overlap, align):
    found = spans(size, window, overlap, align)
    total = np.zeros(size)
    for span, weight in zip(found, weights(found), strict=True):
        assert span.start % align == 0
        assert span.stop - span.start <= window
        total[span] += weight
        assert weight.min() >= 0
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert found[-1].stop == size
    shared = [a.stop - b.start for a, b in itertools.pairwise(found)]
    assert min(shared) >= overlap * window - 1


def test_weights_by_hand():
    # sin(22.5 degrees / 2)^2 and so on, over the two pixels that are shared.
    rise = np.sin(np.pi / 2 * np.array([0.25, 0.75])) ** 2
    first, second, last = weights(spans(14, 6, 1 / 3))
    np.testing.assert_allclose(first, [1, 1, 1, 1, *rise[::-1]], rtol=1e-6)
    np.testing.assert_allclose(second, [*rise, 1, 1, *rise[::-1]], rtol=1e-6)
    np.testing.assert_allclose(last, [*rise, 1, 1, 1, 1], rtol=1e-6)


def test_weights_rise_over_half_a_window_at_most():
    # Of windows of 4 pixels, the first two share 3; the weights rise over 2.
    spread = np.sin(np.pi / 2 * np.array([0.25, 0.75, 0.75, 0.25])) ** 2
    total = np.zeros(6)
    for start in range(3):
        total[start : start + 4] += spread
    found = weights(spans(6, 4, 0.75))
    assert len(found) == 3
    for start, weight in enumerate(found):
        np.testing.assert_allclose(
            weight, spread / total[start : start + 4], rtol=1e-6
        )


@pytest.mark.parametrize(
    "window, smallest_side, expected",
    [(40, 32, 8), (39, 32, 1), (41, 32, 8), (32, 32, 1)],
)
def test_windows_are_aligned_if_a_stride_less_is_enough(
    window, smallest_side, expected
):
    """The last window may be shorter by less than a cell."""
    engine = Engine()
    engine.output_stride, engine.smallest_side = 8, smallest_side
    assert SlidingWindow(engine, window).align == expected


class Offsets(Engine):
    """Each call is of another opinion about the whole window."""

    def scores(self, images):
        self.sizes.append(images.shape[1:3])
        sign = (-1) ** len(self.sizes)
        scores = np.zeros((*images.shape[:3], 3), "float32")
        scores[..., 0] = 20 * sign  # the softmax is 1 or 0
        return scores


def test_windows_that_disagree_leave_no_seam():
    images = picture(32, 80)
    found = np.exp(SlidingWindow(Offsets(), 32, 0.5).scores(images))[0, ..., 0]
    assert found.min() < 0.01 and found.max() > 0.99
    # The steepest of half a cosine over 16 pixels; a mean of the windows that
    # cover a pixel would step by a half.
    steps = np.abs(np.diff(found, axis=1))
    assert steps.max() <= np.pi / 2 / 16
    assert steps.max() > 0.05


class Cells(Engine):
    """Means of 4x4 pixels, summed over 3x3 cells, drawn 4x4 pixels large."""

    output_stride = 4

    def scores(self, images):
        images = np.asarray(images, "float32") / 255
        batch, height, width, channels = images.shape
        rows, columns = -(-height // 4), -(-width // 4)
        whole = ((0, 0), (0, 4 * rows - height), (0, 4 * columns - width))
        cells = np.pad(images, (*whole, (0, 0)))
        shape = (batch, rows, 4, columns, 4, channels)
        cells = np.pad(
            cells.reshape(shape).mean((2, 4)), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        total = sum(
            cells[:, i : i + rows, j : j + columns]
            for i, j in itertools.product(range(3), repeat=2)
        )
        drawn = total.repeat(4, axis=1).repeat(4, axis=2)
        return drawn[:, :height, :width]


def test_windows_of_an_equivariant_network_equal_the_whole():
    """But where it sees the border of a window, 8 pixels at most."""
    height, width, window, overlap = 75, 102, 40, 0.5
    images = picture(height, width)
    whole = Cells().scores(images)
    scores = SlidingWindow(Cells(), window, overlap).scores(images)
    error = np.abs(np.exp(scores) - softmax(whole)).max((0, 3))

    def near(size):
        """Pixels at a border of a window that is none of the image."""
        found = np.zeros(size, bool)
        for start in range(0, size - window + 4, 20):
            stop = start + window
            if start:
                found[start : start + 8] = True
            if stop < size:
                found[stop - 8 : stop] = True
        return found

    seen = near(height)[:, None] | near(width)
    assert 0.2 < seen.mean() < 0.9
    assert error[~seen].max() < 1e-6
    # And there the windows that see less weigh less.
    assert 1e-4 < error[seen].max()


def test_a_picture_that_fits_is_seen_whole():
    engine, images = Engine(), picture(21, 30)
    scores = SlidingWindow(engine, 30).scores(images)
    assert engine.sizes == [(21, 30)]
    np.testing.assert_array_equal(scores, engine.scores(images))


def test_scales_and_flip_are_averaged():
    images = picture(20, 30)

    class Gradient(Engine):
        """Knows left from right, so that a flip that is not undone shows."""

        def scores(self, images):
            ramp = np.linspace(0, 2, images.shape[2])[None, None, :, None]
            return super().scores(images) * [1, 1, 0] + ramp * [0, 0, 1]

    engine = Gradient()
    scores = MultiScale(engine, (1.0, 2.0), flip=True).scores(images)
    assert engine.sizes == [(20, 30)] * 2 + [(40, 60)] * 2
    double = np.stack([resize_image(image, (40, 60)) for image in images])
    expected = 0
    for seen in (images, double):
        for step in (1, -1):
            p = softmax(engine.scores(seen[:, :, ::step]))[:, :, ::step]
            if seen is double:
                # Bilinear at half-pixel centres, by half: the mean of 2x2.
                p = p.reshape(2, 20, 2, 30, 2, 3).mean((2, 4))
            expected = expected + p / 4
    np.testing.assert_allclose(np.exp(scores), expected, atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SlidingWindow(Engine(), 0), "int > 0. Received: window=0"),
        (lambda: SlidingWindow(Engine(), 8, 1.0), "Received: overlap=1.0"),
        (lambda: SlidingWindow(Engine(), 8, -0.1), "Received: overlap=-0.1"),
        (lambda: MultiScale(Engine(), ()), r"Received: scales=\(\)"),
        (lambda: MultiScale(Engine(), (1, -1)), r"Received: scales=\(1, -1\)"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_predictor(tiny_workdir, tiny_export, predictor_of):
    image = picture(48, 72)[0]
    plain = predictor_of(tiny_workdir)
    whole = ka.Predictor(tiny_workdir, window=200)
    np.testing.assert_array_equal(whole.predict(image), plain.predict(image))
    averaged = ka.Predictor(
        tiny_workdir, scales=(0.75, 1.0), flip=True, window=40
    )
    labels, scores = averaged.predict(image, return_scores=True)
    assert labels.shape == (48, 72)
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1, atol=1e-4)
    np.testing.assert_array_equal(labels, averaged.predict(image))
    mirrored = averaged.score_batch(image[None, :, ::-1])[0, :, ::-1]
    assert np.abs(mirrored - scores).max() < 1  # windows fall elsewhere
    both = ka.Predictor(tiny_workdir, flip=True)
    np.testing.assert_allclose(
        both.score_batch(image[None, :, ::-1])[:, :, ::-1],
        both.score_batch(image[None]),
        atol=1e-4,
    )
    for arguments in ({"flip": True}, {"scales": (2.0,)}, {"window": 64}):
        with pytest.raises(
            ValueError,
            match="Only a .keras model can be averaged or predicted in windows",
        ):
            ka.Predictor(tiny_export / "saved_model", **arguments)


@pytest.mark.slow
def test_12_megapixels_within_4_gb(tmp_path):
    """The peak of a process of its own."""
    model = DeepLabV3Plus(21, backbone_weights=None, separable=True)
    model.save(tmp_path / "model.keras")
    process = forked.start(
        tmp_path / "log", predict_12_megapixels, tmp_path / "model.keras"
    )
    (printed,) = forked.finish(process)
    shape, peak = printed.strip().splitlines()[-2:]
    assert shape == "(3000, 4000)"
    assert int(peak) * 1024 < 4e9


def predict_12_megapixels(model):
    # Overlap costs time, not memory.
    predictor = ka.Predictor(model, window=512, overlap=0.0)
    image = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), "uint8")
    print(predictor.predict(image).shape)
    (peak,) = (line for line in open("/proc/self/status") if "VmHWM" in line)
    print(peak.split()[1])  # KiB; ru_maxrss would be the parent's at least


def test_a_binary_threshold_holds_for_the_mean_probability():
    """At threshold 0.1, probabilities of 0.3 and 0.001 average to an object."""

    class Binary(Engine):
        num_classes = 2
        threshold = 0.1

        def scores(self, images):
            self.sizes.append(images.shape[1:3])
            p = 0.3 if len(self.sizes) == 1 else 0.001
            scores = np.zeros((*images.shape[:3], 2), "float32")
            scores[..., 0] = np.log(0.1 / 0.9)
            scores[..., 1] = np.log(p / (1 - p))
            return scores

    both = MultiScale(Binary(), (1.0,), flip=True)
    images = np.zeros((1, 4, 4, 3), "uint8")
    scores = both.scores(images)
    assert (scores.argmax(-1) == 1).all()
    odds = np.exp(scores[..., 1] - scores[..., 0]) * 0.1 / 0.9
    np.testing.assert_allclose(odds / (1 + odds), 0.1505, rtol=1e-4)


def test_windows_start_at_multiples_even_of_a_whole_step():
    starts = [one.start for one in spans(9, 4, 0.5, align=2)]
    assert starts == [0, 2, 4, 6]
