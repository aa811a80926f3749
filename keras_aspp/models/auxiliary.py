"""AuxiliaryHead: a second head of a segmenter, which only training uses.

Shape legend: B batch, H x W pixels, h x w feature cells, K `num_classes`.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_aspp.layers.background_logit import BackgroundLogit
from keras_aspp.models.features import pick
from keras_aspp.models.head import HeadBuilder
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import producer
from keras_aspp.utils.numeric import check_number
from keras_aspp.utils.types import Tensor

LOGITS, AUXILIARY = "logits", "auxiliary"
# Channels of the feature for each filter of the 3x3 convolution, as in
# torchvision's FCNHead.
_REDUCTION = 4
# The training step that runs; each replica of a strategy has a thread.
_STEP = contextvars.ContextVar("_STEP", default=None)


class TrainingTerm:
    """Term of the loss that only the training step of a model computes.

    Args:
        name: name of its metric.
        weight: float > 0, factor of the term in the loss.

    Attributes:
        metric: `keras.metrics.Mean` of the term, without its weight.
        variables: list of `keras.Variable` that training updates or restores.
        loss: the term's own `keras.losses.Loss`, or `None` if the term uses
            that of the model.
    """

    def __init__(self, name: str, weight: float) -> None:
        self.weight = weight
        self.metric = keras.metrics.Mean(name)
        self.variables: list[keras.Variable] = []
        self.loss: keras.losses.Loss | None = None

    def compute(
        self,
        model: Any,
        x: Tensor,
        y: Tensor,
        y_pred: Mapping[str, Tensor],
        sample_weight: Tensor | None,
    ) -> Tensor:
        """Computes the term; arguments as in `keras.Model.compute_loss`.

        Args:
            model: the compiled model.
            x: images, preprocessed.
            y: labels.
            y_pred: dict of logits, `LOGITS` and those of an auxiliary head.
            sample_weight: tensor or `None`.

        Returns:
            float32 scalar; under a strategy, the replica's part of the sum.
        """
        raise NotImplementedError


class AuxiliaryHead(TrainingTerm):
    """Fully convolutional head on a feature in the middle of the backbone.

    3x3 convolution -> batch norm -> ReLU -> dropout -> classifier -> resize.
    Its loss gives the first stages of the backbone a shorter gradient.

    It is not a Keras layer, so that its segmenter does not track it: weights,
    saved files and exports of the segmenter are those without it.

    Args:
        images: symbolic input of the segmenter, (B, H, W, C).
        logits: symbolic output of the segmenter, (B, H, W, K).
        features: symbolic feature maps of the backbone, by nominal stride.
        feature: key of the feature that the head reads.
        stride: int, pixels of the image per cell of that feature.
        builder: `HeadBuilder` of the segmenter.
        task: see `Segmenter`.
        weight: float > 0, factor of the head's loss.

    Attributes:
        model: functional `keras.Model`, images -> dict of the two logits.
        layers: layers of the head that have state.
        metric: `keras.metrics.Mean` of the head's loss, without its weight.

    Reference:
        [Zhao et al., 2017](https://arxiv.org/abs/1612.01105), section 3.3;
        filters and feature are those of torchvision.
    """

    def __init__(
        self,
        images: keras.KerasTensor,
        logits: keras.KerasTensor,
        features: Mapping[str, keras.KerasTensor],
        feature: str,
        stride: int,
        builder: HeadBuilder,
        task: str,
        weight: float,
    ) -> None:
        super().__init__("auxiliary_loss", weight)
        self.feature = feature
        x = pick(features, feature)
        filters = max(x.shape[-1] // _REDUCTION, 1)
        x = conv = builder.conv(x, filters, name="auxiliary_conv")
        x = drop = builder.drop(x, name="auxiliary_dropout")
        x = scores = builder.classify(x, name="auxiliary_classifier")
        if task == "binary":
            x = BackgroundLogit(dtype="float32", name="auxiliary_background")(x)
        x = builder.resize(
            x, stride, images, name="auxiliary_logits", dtype="float32"
        )
        self.model = keras.Model(images, {LOGITS: logits, AUXILIARY: x})
        self.layers = [producer(made) for made in (conv, drop, scores)]
        self.variables = [v for layer in self.layers for v in layer.variables]

    def compute(
        self,
        model: Any,
        x: Tensor,
        y: Tensor,
        y_pred: Mapping[str, Tensor],
        sample_weight: Tensor | None,
    ) -> Tensor:
        return model.loss(y, y_pred[AUXILIARY], sample_weight)


class _Step:
    """A training step: its model, and the images and outputs of its call."""

    def __init__(self, model):
        self.model, self.images, self.outputs = model, None, {}


def _as_training_step(function):
    """Wraps a training step, within which the terms of the loss count."""

    @functools.wraps(function)
    def train_step(self, *args, **kwargs):
        token = _STEP.set(_Step(self))
        try:
            return function(self, *args, **kwargs)
        finally:
            _STEP.reset(token)

    train_step.has_terms = True
    return train_step


class AuxiliaryTraining:
    """Mixin of a Keras model that trains with further terms of the loss.

    The terms are those of an `AuxiliaryHead` and of a teacher, see
    `models.distill`. Without them, every method is that of Keras. Only the
    model's own training step computes them; the model within another one, or
    called by hand, has its logits only. `weights` are those of the saved
    model. `variables` include those of an auxiliary head; optimizers,
    averages of weights and checkpoints read these.
    """

    _auxiliary: AuxiliaryHead | None = None
    _teacher: TrainingTerm | None = None
    _evaluates: bool = False

    @property
    def auxiliary_weight(self) -> float:
        """Factor of the auxiliary head's loss; 0 without such a head."""
        return self._auxiliary.weight if self._auxiliary else 0.0

    @property
    def auxiliary_feature(self) -> str | None:
        """Feature that the auxiliary head reads, or `None` without one."""
        return self._auxiliary.feature if self._auxiliary else None

    @property
    def variables(self) -> list[keras.Variable]:
        own = super().variables
        return [*own, *self._auxiliary.variables] if self._auxiliary else own

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        if self._auxiliary:
            return self.trainable_variables
        return super().trainable_weights

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        own = super().metrics
        if not self._evaluates:
            own += [term.metric for term in training_terms(self)]
        return own

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        if training and self._auxiliary and _step_of(self):
            outputs = self._auxiliary.model(inputs, training=True)
        else:
            outputs = super().call(inputs, training=training, mask=mask)
        return logits_of(self, inputs, outputs, training)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A training step of one's own need not call that of Keras.
        if not hasattr(cls.train_step, "has_terms"):
            cls.train_step = _as_training_step(cls.train_step)

    @_as_training_step
    def train_step(self, *args: Any) -> Any:
        return super().train_step(*args)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        terms, step = training_terms(self), _step_of(self)
        if not (terms and training and step):
            return loss
        if step.images is None:
            raise InputError(
                "A training step must call the model with `training=True` "
                "before `compute_loss`, which adds the loss of an auxiliary "
                f"head or a teacher. Received: {type(self).__name__}"
                ".train_step, which has not"
            )
        x = step.images if x is None else x
        y_pred = {**step.outputs, LOGITS: y_pred}
        # A replica of a strategy has its part of the sum over all of them,
        # of which the metric takes the mean.
        strategy = getattr(self, "distribute_strategy", None)
        replicas = strategy.num_replicas_in_sync if strategy else 1
        for term in terms:
            value = term.compute(self, x, y, y_pred, sample_weight)
            term.metric.update_state(value * replicas)
            loss = loss + term.weight * value
        return loss

    @functools.wraps(keras.Model.compile)
    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        if self._auxiliary and not isinstance(
            self.loss, (keras.losses.Loss, type(None))
        ):
            raise InputError(
                "The loss of a model with an auxiliary head must be a "
                "`keras.losses.Loss`, such as keras_aspp.losses.CrossEntropy()."
                f" Received: loss={self.loss!r}"
            )

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_training_metrics():
            return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_training_metrics():
            return super().test_on_batch(*args, **kwargs)

    @contextlib.contextmanager
    def _without_training_metrics(self) -> Iterator[None]:
        """Hides the metrics of the terms, which evaluation does not update."""
        self._evaluates = True
        try:
            yield
        finally:
            self._evaluates = False


def _step_of(model):
    """Returns the training step that runs if it is of this very model."""
    step = _STEP.get()
    return step if step and step.model is model else None


def logits_of(
    model: AuxiliaryTraining, inputs: Tensor, outputs: Any, training: Any
) -> Tensor:
    """Returns the logits of a call; a training step keeps what its terms need.

    Args:
        model: that is called.
        inputs: images, preprocessed.
        outputs: logits, or a dict of them and those of an auxiliary head.
        training: bool or `None`.
    """
    if not isinstance(outputs, dict):
        outputs = {LOGITS: outputs}
    step = _step_of(model)
    if training and step:
        step.images, step.outputs = inputs, outputs
    return outputs[LOGITS]


def training_terms(model: AuxiliaryTraining) -> list[TrainingTerm]:
    """Returns the terms that a model's training step adds to its loss."""
    return [term for term in (model._auxiliary, model._teacher) if term]


def add_teacher(model: AuxiliaryTraining, teacher: TrainingTerm) -> None:
    """Adds a teacher's term to a model's training step, or replaces it."""
    model._teacher = teacher
    # A compiled step lacks the term.
    model.train_function = None


def check_auxiliary(weight: Any, feature: str | None) -> None:
    """Raises `ValueError` unless a weight is finite and >= 0."""
    check_number("auxiliary_weight", weight, "[0, inf)")
    if feature is not None and not weight:
        raise InputError(
            "`auxiliary_feature` needs `auxiliary_weight` > 0. "
            f"Received: auxiliary_feature={feature!r}, "
            f"auxiliary_weight={weight}"
        )
