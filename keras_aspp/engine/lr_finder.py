"""Learning-rate range test."""

import math

import keras
import numpy as np

from keras_aspp.engine.compile import compile_model

LOWEST, HIGHEST = 1e-5, 3.0
STEPS = 120
# Momentum of the moving average of the loss, and the factor over its smallest
# value at which it counts as diverged.
MOMENTUM, DIVERGED = 0.9, 2.0


def find_learning_rate(model, config, batches, ignore_label, class_weights):
    """Trains for some batches while the learning rate grows.

    Args:
        model: `Segmenter`; its weights are unusable afterwards.
        config: `TrainConfig` with the optimizer and the loss.
        batches: iterable of `(images, labels)`, endless.
        ignore_label: int.
        class_weights: floats, or `None`.

    Returns:
        `(rates, losses, suggested)`: float arrays, one number for each batch
        until the loss diverged, losses smoothed; and the rate at which the
        loss fell fastest, or `None` if it never did.

    Reference:
        Smith, 2017, "Cyclical Learning Rates for Training Neural Networks",
        section 3.3.
    """

    def growth(factor=1.0):
        return keras.optimizers.schedules.ExponentialDecay(
            LOWEST * factor, 1, (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
        )

    compile_model(model, config, STEPS, ignore_label, class_weights, growth)
    rates, losses, mean, least = [], [], 0.0, math.inf
    for step, (images, labels) in zip(range(STEPS), batches, strict=False):
        model.reset_metrics()
        loss = model.train_on_batch(images, labels, return_dict=True)["loss"]
        mean = MOMENTUM * mean + (1 - MOMENTUM) * float(loss)
        smooth = mean / (1 - MOMENTUM ** (step + 1))
        if not math.isfinite(smooth) or smooth > DIVERGED * least:
            break
        least = min(least, smooth)
        rates.append(float(growth()(step)))
        losses.append(smooth)
    return np.array(rates), np.array(losses), steepest(rates, losses)


def steepest(rates, losses):
    """Returns the rate at which the loss fell fastest, per factor of the rate.

    Returns:
        float, or `None` if it never fell.
    """
    least = int(np.argmin(losses)) if len(losses) else 0
    if least < 2:
        return None
    slopes = np.gradient(losses[: least + 1], np.log(rates[: least + 1]))
    return float(rates[int(np.argmin(slopes))])
