"""Recall by size of object, against counts by hand."""

import numpy as np
import pytest

from keras_aspp.metrics import SizeRecall
from keras_aspp.metrics.objects import regions


def test_size_recall():
    instances = np.array([[1, 1, 2, 2, 2], [0, 3, 3, 3, 3], [4, 4, 0, 0, 0]])
    predicted = np.array([[5, 0, 6, 6, 0], [5, 7, 7, 7, 0], [6, 6, 5, 6, 7]])
    recall = SizeRecall((10, 20, 40, 80))
    for _ in range(2):  # counts add up over pictures
        recall.update(predicted, instances, [5, 6, 7, 5], [10, 20, 39.9, 15])
    # 10 and 15: one of four; 20 and 39.9: two of three and three of four.
    assert recall.result() == {"10-20": 1 / 4, "20-40": 5 / 7, "40-80": None}


def test_size_recall_holds_the_upper_edge():
    recall = SizeRecall((10, 20, 40))
    recall.update(np.array([[1, 0]]), np.array([[1, 1]]), [1], [40.0])
    assert recall.result() == {"10-20": None, "20-40": 0.5}
    assert recall.counts() == {"10-20": 0, "20-40": 1}


def test_sizes_outside_the_edges_are_not_counted():
    recall = SizeRecall(iter([16, 16.5, 32]))
    sizes = [15.9, 16, 16.5, 32, 32.1, np.nan]
    instances = np.arange(1, 7)[None]
    recall.update(np.ones((1, 6), int), instances, [1] * 6, sizes)
    assert recall.counts() == {"16-16.5": 1, "16.5-32": 2}
    assert recall.result() == {"16-16.5": 1, "16.5-32": 1}


def test_instances_are_ints():
    with pytest.raises(ValueError, match="ints, 0 outside.*float64"):
        SizeRecall().update(np.ones((1, 2)), np.ones((1, 2)), [1], [2.0])


def flood(labels, ignore_label):
    """Regions by a stack, pixel by pixel."""
    found, count = np.zeros(labels.shape, int), 0
    for start in np.ndindex(*labels.shape):
        if found[start] or labels[start] == ignore_label:
            continue
        count += 1
        stack = [start]
        while stack:
            y, x = stack.pop()
            if found[y, x]:
                continue
            found[y, x] = count
            for v in range(max(y - 1, 0), min(y + 2, labels.shape[0])):
                for u in range(max(x - 1, 0), min(x + 2, labels.shape[1])):
                    if labels[v, u] == labels[y, x]:
                        stack.append((v, u))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_regions_equal_a_flood_fill(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 3, 255], (11, 17), p=[0.6, 0.2, 0.2])
    instances, class_ids, sizes_px = regions(labels)
    expected = flood(labels, 255)
    pairs = {*zip(instances.ravel(), expected.ravel(), strict=True)}
    # The same regions, perhaps by other numbers.
    assert len(pairs) == len(class_ids) + 1 == expected.max() + 1
    assert (0, 0) in pairs
    for i, (class_id, size) in enumerate(
        zip(class_ids, sizes_px, strict=True), 1
    ):
        assert (labels[instances == i] == class_id).all()
        assert size**2 == pytest.approx((instances == i).sum())


def test_a_picture_without_objects():
    recall = SizeRecall()
    labels = np.full((4, 5), 255)
    recall.update(labels, *regions(labels))
    assert set(recall.counts().values()) == {0}
    assert set(recall.result().values()) == {None}


def test_labels_of_no_class_are_refused():
    labels = np.array([[0, 3, 255, -1]])
    with pytest.raises(ValueError, match="Received: 2 pixels .*first 3"):
        regions(labels, 255, 3)
    with pytest.raises(ValueError, match="Received: 1 pixels .*first -1"):
        regions(labels)


def test_instances_without_a_kind_are_refused():
    with pytest.raises(
        ValueError, match=r"1 class ids, 1 sizes, instances 0\.\.2"
    ):
        SizeRecall().update(np.array([[1, 1]]), np.array([[0, 2]]), [1], [3.0])
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1, 2\)"):
        SizeRecall().update(np.ones(2), np.array([[0, 1]]), [1], [3.0])
