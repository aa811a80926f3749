"""What a run says at its end, and the figure of many classes."""

import numpy as np
import pytest
from tiny_run import replace

from keras_aspp.cli.output import print_metrics
from keras_aspp.config.schema import Config
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.advice import advise_on_classes, advise_on_length
from keras_aspp.engine.evaluate import metrics_dict
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.plots.evaluation import confusion_figure

NAMES = ("ground", "found", "rare", "unseen", "foreign", "common", "nowhere")


@pytest.fixture
def metrics():
    """`rare` and `unseen` are missed, `foreign` and `common` only guessed."""
    labels = np.repeat([0, 1, 2, 3, 5], [60, 20, 4, 6, 10])
    guesses = np.repeat([0, 1, 0, 4, 0], [60, 20, 4, 6, 10])
    matrix = ConfusionMatrix(len(NAMES))
    matrix.update_state(labels[None, None], guesses[None, None])
    found = {**metrics_dict(matrix, DatasetSpec(NAMES)), "split": "val"}
    assert found["per_class_iou"] == {
        "ground": pytest.approx(60 / 74),
        "found": 1.0,
        "rare": 0.0,
        "unseen": 0.0,
        "foreign": 0.0,
        "common": 0.0,
        "nowhere": None,
    }
    return found


def test_classes_that_were_not_found_are_explained(metrics):
    learned = np.array([9000, 500, 5, 0, 200, 295, 0])
    scored = np.array([60, 20, 4, 6, 0, 10, 0])
    unseen, unlabeled, rare, frequent = advise_on_classes(
        metrics, Config(), NAMES, learned, scored
    )
    head = "1 of 7 classes at IoU 0.0000 "
    assert unseen.startswith(
        head + "do not occur in split train and cannot be learned: unseen."
    )
    assert unlabeled.startswith(
        head + "are predicted but not labeled in split val"
    )
    assert "learned: foreign (2%) of the pixels in train." in unlabeled
    # A tenth of an equal share of seven is 1.4 %, and 1 % is the most.
    assert rare.startswith(
        head + "are rare in split train, below 1% of its labeled pixels: "
        "rare (0.05%). Add images"
    )
    assert rare.endswith(
        "or try --train.loss.dice 1 or --train.loss.lovasz 1, "
        "--train.loss.class_weights median_frequency"
    )
    assert frequent.startswith(
        head + "are not rare in split train: common (2.9%) of its"
    )


def test_only_what_is_not_done_already_is_advised(metrics):
    learned = np.array([90_000, 5000, 50, 9, 200, 20, 0])
    loss = Config().train.loss.__class__(
        lovasz=1.0, class_weights="effective_number"
    )
    config = replace(Config(), train={"loss": loss})
    (rare,) = advise_on_classes(metrics, config, NAMES, learned, learned)
    # The rarest first.
    assert rare.startswith("4 of 7 classes at IoU 0.0000 are rare")
    assert "unseen (0.0094%), common (0.021%), rare (0.052%), foreign" in rare
    assert rare.endswith("by `label_map`")
    metrics["per_class_iou"] = dict.fromkeys(NAMES, 0.3)
    assert not advise_on_classes(metrics, config, NAMES, learned, learned)


def test_a_run_that_was_still_growing_says_so():
    (line,) = advise_on_length(4, 4)
    assert "--train.total_epochs" in line
    assert advise_on_length(3, 4) == advise_on_length(1, 1) == []


def test_advice_follows_the_table(metrics, capsys):
    metrics |= {"num_images": 1, "advice": ["do this", "do\x1b that"]}
    print_metrics(metrics)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "Advice: do this."
    assert "\x1b" not in lines[-1]


def labels_of(axes, name):
    return [
        text.get_text() for text in getattr(axes, f"get_{name}ticklabels")()
    ]


def test_the_confusion_matrix_shows_what_occurs_by_frequency():
    spec = DatasetSpec(NAMES)
    matrix = np.zeros((7, 7), int)
    matrix[1, 1], matrix[1, 4], matrix[0, 0], matrix[5, 1] = 30, 10, 50, 10
    figure = confusion_figure(matrix, spec)
    (axes,) = figure.axes
    assert labels_of(axes, "x") == ["ground", "found", "common", "foreign"]
    assert labels_of(axes, "y") == [
        "ground  (50 %)",
        "found  (40 %)",
        "common  (10 %)",
        "foreign  (0 %)",
    ]
    np.testing.assert_array_equal(
        axes.images[0].get_array(),
        [[1, 0, 0, 0], [0, 0.75, 0, 0.25], [0, 1, 0, 0], [0, 0, 0, 0]],
    )
    assert "3 classes that do not occur" in axes.get_title()
    # Nothing was counted: every class, in its order.
    (axes,) = confusion_figure(matrix * 0, spec).axes
    assert labels_of(axes, "x") == list(NAMES)


def test_the_confusion_matrix_of_59_classes_fits_a_page():
    spec = DatasetSpec([f"class {i}" for i in range(59)])
    matrix = np.diag(np.arange(1, 60))
    figure = confusion_figure(matrix, spec)
    assert max(figure.get_size_inches()) < 22
    assert labels_of(figure.axes[0], "x")[0] == "class 58"
