"""Probes that run a layer to classify its effect on cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def growth(node: Any) -> float | None:
    """Measures the ratio of output to input size of an unknown layer.

    Returns:
        float: 1 where cells stay, 0.5 for a stride of 2; 0 for one cell or
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
        )
        return tuple(output.shape)

    try:
        small, large = size_at(96), size_at(192)
    except Exception:
        # A layer that is made for one size refuses others in its own way.
        return None
    if small[1:] == large[1:] and (len(small) < 4 or small[1:3] == (1, 1)):
        return 0
    if (
        len(small) != 4
        or None in small[1:3] + large[1:3]
        or any(
            2 * a != b or a != small[1]
            for a, b in zip(small[1:3], large[1:3], strict=True)
        )
    ):
        return None
    return small[1] / 96


def leaves_cells_alone(
    layer: keras.Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Returns True if each output cell depends on the same input cell only.

    It is tried: one cell of random maps is changed, and no other one of the
    output may follow. Group normalization is let by; like the mean of
    squeeze-and-excite, its statistics are those of the whole map.

    Args:
        layer: layer, or operation of `keras.ops`.
        args: arguments of its call by position, with symbolic tensors.
        kwargs: arguments of its call by name.
    """
    if isinstance(layer, keras.layers.GroupNormalization):
        return True
    # No axis equals another, and no symmetry maps the cell to itself.
    height, width, cell = 7, 9, (0, 2, 3)

    def output_at(change):
        rng = np.random.default_rng(0)  # the same numbers each time

        def filled(t):
            if not _is_map(t):
                x = rng.normal(size=[n or 1 for n in t.shape])
            else:
                x = rng.normal(size=(1, height, width, t.shape[-1]))
                x[cell] += change
            return ops.convert_to_tensor(x, t.dtype)

        output = _called(layer, args, kwargs, filled)
        return np.array(ops.convert_to_numpy(output), "float64")

    try:
        # 10 is more than any other number, so that a maximum moves.
        before, after = output_at(0), output_at(10)
    except Exception:
        # It wants other sizes, and so cannot be made dense anyway.
        return False
    if before.shape[1:3] != (height, width):
        return False
    after[cell] = before[cell]
    # The logarithm or root of a negative number is NaN both times.
    return np.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True)


def _called(function, args, kwargs, replace):
    """Calls `function` with its symbolic tensors replaced."""
    args, kwargs = keras.tree.map_structure(
        lambda t: replace(t) if isinstance(t, keras.KerasTensor) else t,
        (tuple(args), dict(kwargs)),
    )
    return keras.tree.flatten(function(*args, **kwargs))[0]


def _is_map(t):
    """Returns True for a feature map, False once pooled to (B, 1, 1, C)."""
    return len(t.shape) == 4 and tuple(t.shape[1:3]) != (1, 1)
