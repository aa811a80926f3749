"""Old names keep working, and warn."""

import inspect

import numpy as np
import pytest

from keras_aspp.losses import Dice, SegmentationLoss, median_frequency_weights
from keras_aspp.metrics import ScaleRecall, SizeRecall
from keras_aspp.utils.deprecation import renamed_arguments

LOGITS = np.array([[[[0.0, 0.0], [9.0, 0.0]]]], "float32")


@renamed_arguments(width="side")
def area(side=2):
    return side**2


def test_an_old_argument_warns_and_is_passed_on():
    with pytest.warns(DeprecationWarning, match=r"`width` .* use `side`"):
        assert area(width=3) == 9
    assert area(side=3) == area(3) == 9
    assert list(inspect.signature(area).parameters) == ["side"]


def test_an_old_argument_beside_the_new_one_is_refused():
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(TypeError, match="`width` is the old name of `side`"),
    ):
        area(side=2, width=3)


def test_old_arguments_of_losses_and_metrics():
    with pytest.warns(DeprecationWarning, match="pixels_of_images"):
        old = median_frequency_weights([4, 2], pixels_of_pictures=[4, 4])
    np.testing.assert_array_equal(old, median_frequency_weights([4, 2], [4, 4]))
    with pytest.warns(DeprecationWarning, match="SizeRecall"):
        recall = ScaleRecall()
    ones = np.ones((2, 2), "int32")
    with pytest.warns(DeprecationWarning, match="class_ids"):
        recall.update(ones, ones, kinds=[1], sizes_px=[2.0])
    assert isinstance(recall, SizeRecall)
    assert recall.counts()["0-16"] == 1


def test_a_loss_written_for_the_old_method_names():
    with pytest.warns(DeprecationWarning, match=r"Old\.of_valid.*`compute`"):

        class Old(SegmentationLoss):
            def of_valid(self, labels, logits, valid):
                return 7.0 + 0.0 * logits[0, 0, 0, 0]

    assert float(Old()([[[0, 255]]], LOGITS)) == 7.0


def test_old_attributes_of_losses():
    loss = Dice()
    with pytest.warns(DeprecationWarning, match="num_replicas"):
        loss.devices = 2
    with pytest.warns(DeprecationWarning, match="num_replicas"):
        assert loss.devices == loss.num_replicas == 2
    with pytest.warns(DeprecationWarning, match="all_reduce_sum"):
        assert loss.everywhere(3) == 3
