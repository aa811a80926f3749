"""Whether a dense map holds the map of the original network."""

import numpy as np
from helpers import npy


def errors(features, expected, step):
    """What each of the samples that may be the original ones is off by.

    Args:
        features: dense map (B, H, W, C).
        expected: the original map (B, h, w, C).
        step: dense cells per original cell.

    Returns:
        dict: `(row, column)` of the first sample -> largest error, in
        standard deviations of `expected`. Only where all cells from there
        on, `step` apart, are as many as the original ones.
    """
    features, expected = (
        npy(x).astype("float64") for x in (features, expected)
    )
    found = {}
    for row in range(step):
        for column in range(step):
            kept = features[:, row::step, column::step]
            if kept.shape == expected.shape:
                error = np.abs(kept - expected).max() / expected.std()
                found[row, column] = error
    return found


def assert_dense(features, expected, step, tolerance=1e-4):
    """The original cells are dense cells `step` apart, and no others are.

    Returns:
        `(row, column)` of the first one.
    """
    spread = npy(expected).astype("float64").std()
    assert spread > 0.05, "too flat to compare"
    found = errors(features, expected, step)
    first = [at for at, error in found.items() if error <= tolerance]
    assert len(first) == 1, found
    return first[0]
