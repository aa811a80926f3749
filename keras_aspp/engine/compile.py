"""Compilation of a segmenter: optimizer, schedule, loss, metric, XLA."""

import keras
import tensorflow as tf
from keras import ops

from keras_aspp.engine.distributed import prepare, share
from keras_aspp.engine.loss import build_loss
from keras_aspp.metrics import confusion_of
from keras_aspp.models.auxiliary import training_terms
from keras_aspp.utils.exceptions import InputError

# Weight decay of these would scale outputs without regularizing the model.
NOT_DECAYED = ("bias", "gamma", "beta")


@keras.saving.register_keras_serializable(package="keras_aspp")
class WarmupPolynomial(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then `peak * (1 - progress) ** power` down to 0.

    Keras' `PolynomialDecay` has no warm-up.

    Args:
        peak: float > 0.
        total_steps: int > 0, batches until 0 is reached.
        warmup_steps: int >= 0, batches until `peak` is reached; at most half
            of `total_steps` are used.
        power: float > 0. Defaults to 0.9.

    Source: Chen et al., 2016, section 4.1 ("poly").
    """

    def __init__(self, peak, total_steps, warmup_steps=0, power=0.9):
        self.peak, self.power = peak, power
        self.total_steps, self.warmup_steps = total_steps, warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        warmup = min(self.warmup_steps, self.total_steps // 2)
        progress = (step - warmup) / max(self.total_steps - warmup, 1)
        decayed = (1 - ops.clip(progress, 0.0, 1.0)) ** self.power
        if warmup:
            decayed = ops.where(step < warmup, (step + 1) / warmup, decayed)
        return self.peak * decayed

    def get_config(self):
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "power": self.power,
        }


class _AveragePerUpdate:
    """Mixin that averages weights once for each update.

    Keras averages once for each batch, also for those that only accumulate
    gradients; the average then covers fewer updates than its momentum implies.
    Until the first update the average is the weights.
    """

    def _update_model_variables_moving_average(self, trainable_variables):
        advance = super()._update_model_variables_moving_average
        if not self.gradient_accumulation_steps:
            advance(trainable_variables)
            return
        updates = (self._iterations + 1) % self.gradient_accumulation_steps == 0
        ops.cond(
            ops.logical_or(updates, self.iterations == 0),
            lambda: advance(trainable_variables),
            lambda: None,
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class SGD(_AveragePerUpdate, keras.optimizers.SGD):
    """`keras.optimizers.SGD` that averages weights once for each update."""


@keras.saving.register_keras_serializable(package="keras_aspp")
class AdamW(_AveragePerUpdate, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that averages weights once for each update."""


def resolve_jit(jit_compile, distributed=False):
    """Decides whether XLA compiles the steps.

    Args:
        jit_compile: `"auto"`, `True` or `False`.
        distributed: bool. Under a strategy of `tf.distribute`.

    Returns:
        `(bool, str)`: the decision and its reason.

    Raises:
        ValueError: XLA is requested under a strategy.
    """
    if distributed and jit_compile is True:
        raise InputError(
            "XLA cannot compile a step that devices of tf.distribute do "
            "together; leave `train.jit_compile` at auto, or train on JAX "
            "(docs/scaling.md). Received: train.jit_compile=true"
        )
    if jit_compile != "auto":
        return jit_compile, f"train.jit_compile={str(jit_compile).lower()}"
    if distributed:
        return False, "auto: not under tf.distribute"
    if tf.config.list_physical_devices("GPU"):
        return True, "auto: a GPU is there"
    return False, "auto: no GPU, where graph mode is faster"


def build_optimizer(config, total_steps, backbone=None, schedule=None):
    """Builds the optimizer of a `TrainConfig`.

    Args:
        config: `TrainConfig`.
        total_steps: int > 0, batches of the whole run.
        backbone: `keras.Model` whose weights are trained with
            `backbone_learning_rate_factor`, or `None`.
        schedule: function of a factor on all rates that returns a schedule,
            or `None` for the configured `WarmupPolynomial`.

    Returns:
        `keras.optimizers.Optimizer`.
    """

    def polynomial(factor):
        # Keras counts batches here, also under accumulation.
        return WarmupPolynomial(
            config.learning_rate * factor,
            total_steps,
            config.warmup_steps,
            config.schedule_power,
        )

    schedule = schedule or polynomial

    def one(factor):
        arguments = {
            "learning_rate": schedule(factor),
            "weight_decay": config.weight_decay,
        }
        if config.ema_momentum is not None:
            arguments["use_ema"] = True
            arguments["ema_momentum"] = config.ema_momentum
        if config.accumulate_steps > 1:
            arguments["gradient_accumulation_steps"] = config.accumulate_steps
        if config.optimizer == "adamw":
            optimizer = AdamW(**arguments)
        else:
            # With 0, SGD would still multiply every weight, and AdamW has no
            # other value for none.
            arguments["weight_decay"] = config.weight_decay or None
            optimizer = SGD(momentum=0.9, **arguments)
        if config.weight_decay:
            optimizer.exclude_from_weight_decay(var_names=list(NOT_DECAYED))
        return optimizer

    factor = config.backbone_learning_rate_factor
    if factor == 1 or backbone is None:
        return one(1.0)
    rest, slow = one(1.0), one(factor)
    inside = {id(v) for v in backbone.trainable_variables}
    return keras.optimizers.MultiOptimizer(
        lambda variable: slow if id(variable) in inside else rest
    )


def compile_model(
    model,
    config,
    total_steps,
    ignore_label,
    class_weights=None,
    schedule=None,
):
    """Compiles a segmenter with the settings of a `TrainConfig`.

    Args:
        model: `Segmenter`.
        config: `TrainConfig`.
        total_steps: int > 0, batches of the whole run.
        ignore_label: int, label of ignored pixels.
        class_weights: floats, one for each class, or `None`.
        schedule: see `build_optimizer`.

    Returns:
        str, whether XLA is on and why.

    Raises:
        ValueError: XLA is requested under a strategy.
    """
    strategy = tf.distribute.get_strategy()
    jit, why = resolve_jit(config.jit_compile, tf.distribute.has_strategy())
    shared = strategy.num_replicas_in_sync > 1
    loss = build_loss(
        config.loss, ignore_label, class_weights, shared, model.task
    )
    if shared:
        share(loss, strategy)
        for term in training_terms(model):
            if term.loss is not None:
                share(term.loss, strategy)
    model.compile(
        optimizer=build_optimizer(
            config, total_steps, model.backbone, schedule
        ),
        loss=loss,
        metrics=[confusion_of(model.task, model.num_classes, ignore_label)],
        jit_compile=jit,
    )
    prepare(model)
    # Variables that the first step creates would make TensorFlow trace it
    # twice.
    model.optimizer.build(model.trainable_variables)
    return f"XLA {'on' if jit else 'off'} ({why})"
