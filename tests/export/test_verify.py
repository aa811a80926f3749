"""Agreement of an artefact with Keras, pixel by pixel."""

import numpy as np
import pytest

from keras_aspp.export import verify

IMAGE = np.zeros((3, 5, 3), "uint8")


def agreement_of(found, name="labels"):
    """Agreement with masks of 3 classes, of which 6 of 15 pixels hold one."""
    expected = np.zeros((3, 5, 3), "uint8")
    expected[:2, :3, 1] = 1
    return verify.compare(
        [{name: found}], lambda *_: {"labels": expected}, [IMAGE]
    )[0]


@pytest.mark.parametrize("name", ["labels", "mask_logits"])
def test_masks_agree_where_all_classes_do(name):
    found = np.zeros((3, 5, 3), "uint8")
    assert agreement_of(found, name) == 9 / 15
    found[:2, :3, 1] = 1
    assert agreement_of(found, name) == 1
    found[2] = 1  # both wrong classes of a pixel count as one pixel
    assert agreement_of(found, name) == 10 / 15


def test_a_file_that_finds_no_mask_fails():
    with pytest.raises(ValueError, match="Received: 60.000%"):
        verify.check_agreement(
            agreement_of(np.zeros((3, 5, 3), "uint8")), "onnx", "a.onnx", False
        )


def test_labels_of_one_class_agree_pixel_by_pixel():
    found, expected = np.zeros((2, 3, 5), "uint8")
    found[0, :4] = 2
    value, _ = verify.compare(
        [{"labels": found}], lambda *_: {"labels": expected}, [IMAGE]
    )
    assert value == 11 / 15
