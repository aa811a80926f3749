"""Probes that run a layer to classify its effect on cells."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
from keras import ops

# Sizes of maps, and the cell that is changed. No axis equals another, and no
# symmetry maps a cell to itself in all of them. The small map shows the mean of
# all cells, the next one a move along both axes, the long ones a tap at a
# rate as high as 36.
_PROBES = (
    ((7, 9), (2, 3)),
    ((19, 23), (8, 12)),
    ((97, 2), (47, 1)),
    ((2, 101), (1, 49)),
)


def growth(node: Any) -> Fraction | None:
    """Measures the ratio of output to input size of an unknown layer.

    Returns:
        Fraction: 1 where cells stay, 1/2 for a stride of 2; 0 for one cell or
        none at all; `None` for anything else.
    """

    def size_at(n):
        def sized(t):
            if not _is_map(t):
                return t
            return keras.KerasTensor((1, n, n, t.shape[-1]), t.dtype)

        output = _called(
            node.operation.compute_output_spec,
            node.arguments.args,
            node.arguments.kwargs,
            sized,
        )[0]
        return tuple(output.shape)

    try:
        small, large = size_at(96), size_at(192)
    except Exception:
        # A layer that is made for one size refuses others in its own way.
        return None
    if small[1:] == large[1:] and (len(small) < 4 or small[1:3] == (1, 1)):
        return Fraction(0)
    if (
        len(small) != 4
        or None in small[1:3] + large[1:3]
        or any(
            2 * a != b or a != small[1]
            for a, b in zip(small[1:3], large[1:3], strict=True)
        )
    ):
        return None
    return Fraction(small[1], 96)


def leaves_cells_alone(
    layer: keras.Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Returns True if each output cell depends on the same input cell only.

    It is tried: one cell of random maps is changed, and no other one of any
    output may follow. Group normalization is let by; like the mean of
    squeeze-and-excite, its statistics are those of the whole map.

    Args:
        layer: layer, or operation of `keras.ops`.
        args: arguments of its call by position, with symbolic tensors.
        kwargs: arguments of its call by name.
    """
    if isinstance(layer, keras.layers.GroupNormalization):
        return True
    try:
        # The layer is a user's own and may assign to its variables, or add
        # losses. The scope drops both.
        with keras.StatelessScope():
            return all(
                _leaves_alone(layer, args, kwargs, *probe) for probe in _PROBES
            )
    except Exception:
        # It wants other sizes, and so cannot be made dense anyway.
        return False


def _leaves_alone(layer, args, kwargs, size, cell):
    def outputs_at(change):
        rng = np.random.default_rng(0)  # the same numbers each time

        def filled(t):
            if not _is_map(t):
                x = rng.normal(size=[n or 1 for n in t.shape])
            else:
                shape = (1, *size, t.shape[-1])
                x = rng.standard_normal(shape, "float32")
                x[0][cell] += change
            return ops.convert_to_tensor(x, t.dtype)

        outputs = _called(layer, args, kwargs, filled)
        return [np.array(ops.convert_to_numpy(y)) for y in outputs]

    # 10 is more than any other number, so that a maximum moves.
    for before, after in zip(outputs_at(0), outputs_at(10), strict=True):
        if before.shape[1:3] != size:
            return False
        after[0][cell] = before[0][cell]
        if np.array_equal(before, after):
            continue
        before, after = before.astype("float64"), after.astype("float64")
        # The logarithm or root of a negative number is NaN both times.
        if not np.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
            return False
    return True


def _called(function, args, kwargs, replace):
    """Returns the outputs of a call, its symbolic tensors replaced."""
    args, kwargs = keras.tree.map_structure(
        lambda t: replace(t) if isinstance(t, keras.KerasTensor) else t,
        (tuple(args), dict(kwargs)),
    )
    return keras.tree.flatten(function(*args, **kwargs))


def _is_map(t):
    """Returns True for a feature map, False once pooled to (B, 1, 1, C)."""
    return len(t.shape) == 4 and tuple(t.shape[1:3]) != (1, 1)
