"""Advice at the end of a run, from its metrics and its data."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_aspp.data.folder import RARE_OF_EQUAL, RARE_SHARE

# An IoU that a table of four digits shows as 0.0000.
ZERO = 0.00005


def zero_classes(metrics: dict[str, Any]) -> list[str]:
    """Returns the names of the classes of IoU 0.

    Args:
        metrics: dict, contents of `metrics.json`.

    Returns:
        list of str; classes that occur neither in labels nor in predictions
        are not among them.
    """
    scores = metrics["per_class_iou"].items()
    return [name for name, iou in scores if iou is not None and iou < ZERO]


def advise_on_classes(
    metrics, config, class_names, learned, scored, total=None
):
    """Explains classes at IoU 0.0000 and suggests remedies.

    Args:
        metrics: dict, contents of `metrics.json`.
        config: `Config` of the run.
        class_names: one name per class.
        learned: int `(K,)`, pixels of each class in the training split.
        scored: int `(K,)`, the same of the split that was evaluated.
        total: int, all pixels of the training split, where classes may
            overlap; `None` for the sum over classes.

    Returns:
        list of str, one line for each reason; empty without such a class.
    """
    lost = set(zero_classes(metrics))
    shares = learned / max(learned.sum() if total is None else total, 1)
    limit = min(RARE_SHARE, RARE_OF_EQUAL / len(class_names))
    reasons = {"unseen": [], "unlabeled": [], "rare": [], "frequent": []}
    for i in np.argsort(shares, kind="stable"):
        name = class_names[i]
        if name not in lost:
            continue
        share = f"{name} ({100 * shares[i]:.2g}%)"
        if not learned[i]:
            reasons["unseen"].append(name)
        elif not scored[i]:
            reasons["unlabeled"].append(share)
        else:
            kind = "rare" if shares[i] < limit else "frequent"
            reasons[kind].append(share)
    splits = config.data.train_split, metrics["split"]
    return [
        f"{len(names)} of {len(class_names)} classes at IoU 0.0000 "
        + _advice(reason, *splits, limit, config.train.loss).format(
            ", ".join(names)
        )
        for reason, names in reasons.items()
        if names
    ]


def advise_on_length(best_epoch: int, epochs: int) -> list[str]:
    """Suggests a longer run if the last epoch was the best.

    Args:
        best_epoch: int, the epoch whose model is kept.
        epochs: int, epochs of the run.

    Returns:
        list of str, one line or none.
    """
    if best_epoch < epochs or epochs < 2:
        return []
    return [
        "the last epoch was the best, so a longer run may score higher "
        "(--train.total_epochs or --train.total_steps)"
    ]


def _advice(reason, train_split, split, limit, loss):
    if reason == "unseen":
        return (
            f"do not occur in split {train_split} and cannot be learned: {{}}. "
            "Add images that show them, or map them to another class or to "
            "ignore by `label_map`"
        )
    if reason == "unlabeled":
        return (
            f"are predicted but not labeled in split {split}, which says "
            f"little of what was learned: {{}} of the pixels in "
            f"{train_split}. Take a split that shows them"
        )
    if reason == "frequent":
        return (
            f"are not rare in split {train_split}: {{}} of its labeled pixels. "
            "Try a longer run, another learning rate (--train.lr_finder "
            "true), or look at their masks"
        )
    more = []
    if not loss.dice and not loss.lovasz:
        more.append("--train.loss.dice 1 or --train.loss.lovasz 1")
    if loss.class_weights is None:
        more.append("--train.loss.class_weights median_frequency")
    return (
        f"are rare in split {train_split}, below {100 * limit:.2g}% of its "
        "labeled pixels: {}. Add images that show them, or merge them with "
        "similar classes by `label_map`"
        + (f"; or try {', '.join(more)}" if more else "")
    )
