"""Gridding against the gradients of a stack of convolutions."""

import itertools

import keras
import numpy as np
import pytest
from helpers import np_dilated_conv

from keras_aspp.analysis import gridding


def seen_by_force(rates, kernel_size):
    """Cells from which a lone 1 reaches around: the field is symmetric."""
    pairs = [(r, r) if isinstance(r, int) else r for r in rates]
    high, wide = np.sum(pairs, axis=0) * (kernel_size - 1) // 2
    x = np.zeros((1, 2 * high + 1, 2 * wide + 1, 1))
    x[0, high, wide] = 1
    for rate in rates:
        kernel = np.ones((kernel_size, kernel_size, 1, 1))
        x = np_dilated_conv(x, kernel, rate)
    return x[0, ..., 0]


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize(
    "rates",
    [
        (1,),
        (2, 2, 2),
        (1, 2, 5),
        (1, 2, 9),
        (4, 2),
        (3, 6),
        (2, 3),
        (1, (2, 5)),
        ((1, 2), (3, 2), (2, 2)),
    ],
)
def test_counts_are_those_of_a_convolution(rates, kernel_size):
    found = gridding(rates, kernel_size)
    expected = seen_by_force(rates, kernel_size)
    pattern = np.outer(*found.axes).astype(float)
    np.testing.assert_array_equal(pattern, expected)
    assert found.shape == expected.shape
    assert found.size == max(expected.shape)
    assert found.unseen == (expected == 0).sum()
    assert found.unseen_share == pytest.approx((expected == 0).mean())


def test_wang_et_al():
    # Section 3.2 and figure 4: 2, 2, 2 leaves a grid, 1, 2, 3 none.
    found = gridding((2, 2, 2))
    assert found.unseen_share == pytest.approx(1 - (7 / 13) ** 2)
    assert found.common_divisor == 2
    assert found.suggestion == (1, 2, 3)
    assert gridding((1, 2, 5)).unseen == 0
    assert gridding((1, 2, 9)).unseen > 0
    assert gridding((1, 2, 9)).suggestion == (1, 3, 8)
    # Three 3x3 without a hole span 27 cells at most, not the 73 of these.
    assert gridding((6, 12, 18)).suggestion == (1, 3, 9)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_suggestions_of_rates_by_axis_leave_nothing_out(kernel_size):
    rng = np.random.default_rng(0)
    for _ in range(30):
        pairs = rng.integers(1, 9, (rng.integers(2, 5), 2)).tolist()
        found = gridding(pairs, kernel_size)
        better = gridding(found.suggestion, kernel_size)
        assert better.unseen == 0
        assert np.all(np.array(better.shape) <= found.shape)
        sizes = rng.choice([3, 5], len(pairs)).tolist()
        assert gridding(gridding(pairs, sizes).suggestion, sizes).unseen == 0
    # The axis without holes keeps its rates.
    found = gridding([(2, 1), (2, 2), (2, 5)])
    assert [columns for _, columns in found.suggestion[1:]] == [2, 5]
    assert found.common_divisor == 2


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_suggestions_leave_nothing_out(kernel_size):
    rng = np.random.default_rng(0)
    for _ in range(50):
        rates = tuple(rng.integers(1, 12, rng.integers(1, 6)).tolist())
        found = gridding(rates, kernel_size)
        better = gridding(found.suggestion, kernel_size)
        assert better.unseen == 0
        assert better.size <= found.size
        assert len(better.rates) == len(rates)
        if not found.unseen:
            assert found.suggestion == rates


def test_suggestions_reach_as_far_as_any_rates_without_holes():
    for sizes in itertools.product((1, 3, 5), repeat=2):
        every = {
            rates: gridding(rates, sizes)
            for rates in itertools.product(range(1, 10), repeat=2)
        }
        reaches = [one.size for one in every.values() if not one.unseen]
        for rates, found in every.items():
            if max(rates) > 6:
                continue
            better = gridding(found.suggestion, sizes)
            farthest = max(n for n in reaches if n <= found.size)
            assert better.size == farthest, (sizes, rates)
            # The rate of a kernel of one cell is any.
            for size, one, other in zip(
                sizes, rates, better.rates, strict=True
            ):
                assert size > 1 or one == other


def test_the_rule_of_hdc_is_sufficient():
    """M_2 <= K, with a first rate of 1, means that nothing is left out."""
    for rates in np.ndindex(5, 8, 12):
        rates = (1, *(rate + 1 for rate in rates[1:]))
        m = rates[-1]
        for rate in reversed(rates[1:-1]):
            m = max(m - 2 * rate, 2 * rate - m, rate)
        if m <= 3:
            assert gridding(rates).unseen == 0, rates


def test_deep_stacks_do_not_overflow():
    assert gridding((1,) * 60).unseen == 0


@pytest.mark.parametrize("rates", [(), (0, 1), (1.5,), 3])
def test_bad_rates(rates):
    with pytest.raises(ValueError, match="Received: atrous_rates="):
        gridding(rates)
    with pytest.raises(ValueError, match="Received: kernel_size=4"):
        gridding((1, 2), kernel_size=4)


def test_kernels_of_different_sizes():
    found = gridding((2, 1), kernel_size=(3, 5))
    assert found.paths.tolist() == [1, 1, 2, 2, 3, 2, 2, 1, 1]
    # Each suggested rate is that of its kernel.
    found = gridding((6, 2), kernel_size=(3, 5))
    assert found.suggestion == (5, 1)
    assert gridding(found.suggestion, (3, 5)).unseen == 0
    with pytest.raises(ValueError, match=r"2 of them. Received: kernel_size="):
        gridding((2, 1), kernel_size=(3,))
    assert gridding((2, 1), np.int64(3)).kernel_sizes == (3, 3)


def test_order_does_not_matter():
    a, b = gridding((1, 2, 5)), gridding((5, 1, 2))
    np.testing.assert_array_equal(a.paths, b.paths)
    assert keras.tree.flatten(a.suggestion) == [1, 2, 5]
