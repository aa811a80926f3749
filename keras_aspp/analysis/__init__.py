"""Cost, receptive fields, valid taps and gridding of a model, as numbers."""

from keras_aspp.analysis.cost import Cost, LayerCost, cost
from keras_aspp.analysis.effective import (
    EffectiveField,
    effective_receptive_field,
)
from keras_aspp.analysis.gridding import Gridding, gridding
from keras_aspp.analysis.receptive_field import ReceptiveField, receptive_fields
from keras_aspp.analysis.taps import ValidTaps, valid_taps
from keras_aspp.analysis.trace import Step, Trace, trace

__all__ = [
    "Cost",
    "EffectiveField",
    "Gridding",
    "LayerCost",
    "ReceptiveField",
    "Step",
    "Trace",
    "ValidTaps",
    "cost",
    "effective_receptive_field",
    "gridding",
    "receptive_fields",
    "trace",
    "valid_taps",
]
