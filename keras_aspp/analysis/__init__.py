"""What a model costs, sees and misses, as numbers."""

from keras_aspp.analysis.cost import Cost, LayerCost, cost
from keras_aspp.analysis.trace import Step, Trace, trace

__all__ = ["Cost", "LayerCost", "Step", "Trace", "cost", "trace"]
