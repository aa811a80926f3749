"""Positions of the cells of every feature map, before and after a rewrite.

Along one axis, let a map of the original network have n cells, and the dense
map computed instead N. The one thing that every rewrite keeps true:

    the original cells are *all* dense cells `origin`, `origin + rate`, ...

so n = ceil((N - origin) / rate). What lies beyond the original map then lies
beyond the dense one, and zero padding, scaled by `rate`, stays what it was.
docs/decisions/0004 derives from it how each kind of layer is rewritten.
"""

from __future__ import annotations

import collections
import dataclasses
from fractions import Fraction
from typing import Any

import keras

from keras_aspp.backbones.probes import growth, leaves_cells_alone
from keras_aspp.layers import rewritable
from keras_aspp.layers.batch_norm import BatchNormalization
from keras_aspp.layers.dilated_reparam import DilatedReparamBlock
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.keras_graph import (
    graph_of,
    is_functional,
    nodes_of,
    producer,
    sublayers,
)
from keras_aspp.utils.types import Pads, Size

# Keras' layers and the subclasses of ours that take their place.
OURS = {
    keras.layers.Conv2D: rewritable.Conv2D,
    keras.layers.DepthwiseConv2D: rewritable.DepthwiseConv2D,
    keras.layers.SeparableConv2D: rewritable.SeparableConv2D,
    keras.layers.MaxPooling2D: rewritable.MaxPooling2D,
    keras.layers.AveragePooling2D: rewritable.AveragePooling2D,
    keras.layers.ZeroPadding2D: rewritable.ZeroPadding2D,
    keras.layers.Cropping2D: rewritable.Cropping2D,
    keras.layers.BatchNormalization: BatchNormalization,
}
CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
WINDOWS = (
    *CONVOLUTIONS,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
)
_PADS_AND_CROPS = (keras.layers.ZeroPadding2D, keras.layers.Cropping2D)
_POOLED = (
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
)
# Layers that act on each cell alone, where their axis is that of channels.
_CELLWISE = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.BatchNormalization,
    keras.layers.Concatenate,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.LayerNormalization,
    keras.layers.Multiply,
    keras.layers.ReLU,
)
# Layers that read or move cells in other ways. They cannot process a map that
# is denser than the one they were built for.
_NOT_CONVERTIBLE = (
    keras.layers.Conv2DTranspose,
    keras.layers.UpSampling2D,
    keras.layers.CenterCrop,
    keras.layers.Resizing,
)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Positions of the cells of a tensor. Pairs are (rows, columns)."""

    stride: Fraction  # pixels per cell in the original network
    rate: int = 1  # cells per original cell: more where strides were traded
    origin: tuple[int, int] = (
        0,
        0,
    )  # dense cell of the first original cell, without
    phases: tuple[Any, ...] = ()  # the size-dependent shifts of `same` layers
    size: tuple[Any, Any] = (
        ((), 0),
        ((), 0),
    )  # equal where sizes must be equal
    is_pooled: bool = False  # reduced to one cell, without a position
    # Layers that shifted the first cell and could be anchored instead.
    shifted_by: frozenset[str] = dataclasses.field(
        default=frozenset(), compare=False
    )
    # Path of the last layer that reduced the rows or columns to one.
    reduced_by: str = dataclasses.field(default="", compare=False)

    def padded(self, cells: Size) -> Grid:
        """Returns the grid of a map with `cells` more rows and columns."""
        size = tuple(
            (base, more + n)
            for (base, more), n in zip(self.size, cells, strict=True)
        )
        return dataclasses.replace(self, size=size)

    def differs_in_size(self, other: Grid) -> bool:
        """Returns True if the original maps surely differ in size."""
        if (self.origin, self.phases) != (other.origin, other.phases):
            return False
        return any(
            base == other_base and abs(more - other_more) >= self.rate
            for (base, more), (other_base, other_more) in zip(
                self.size, other.size, strict=True
            )
        )

    def after_stride(self, stride: int, shift: Size) -> Grid:
        """Returns the grid of a map of ceil((size + shift) / stride) cells."""
        if stride == 1:
            return self.padded(shift)
        size = tuple(
            ((was, n, stride), 0)
            for was, n in zip(self.size, shift, strict=True)
        )
        return dataclasses.replace(self, stride=self.stride * stride, size=size)


def pair(value: int | Size) -> tuple[int, int]:
    """Returns an int or a pair of ints as a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def restored(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns the configuration values that undo an earlier rewrite."""
    original = dict(getattr(layer, "original", {}))
    if not original:
        return {}
    if isinstance(layer, WINDOWS):
        original = {"pads": None, "anchor": None, **original}
    return {**original, "original": {}}


class Walk:
    """Propagates `Grid`s from the inputs of a graph to its outputs.

    Args:
        model: functional `keras.Model`.
        output_stride: int. Strides beyond it are traded for dilation.
        anchored: names of layers whose first cell must keep its position.
        gates: paths of layers whose single cell is broadcast over a map, as
            found by an earlier walk.

    Attributes:
        grids: dict: path of a layer -> `Grid` of its first output, in its
            last call. A path is the layer's name, prefixed by those of its
            nested models.
        tensors: dict: (prefix, id of a symbolic tensor) -> its `Grid`. A
            nested model and a shared layer have several outputs; models may
            have the same input tensor.
        changes: dict: path -> configuration values that make it dense.
        trims: paths of layers that join maps of different size.
        resized: paths of nested models whose inputs are denser, thus larger,
            than the ones they were built for.
        conflicts: paths of layers whose shifts give joined maps different
            origins.
        gates: those given and those found: squeeze-and-excite may pool by a
            window over the whole map.
    """

    def __init__(
        self,
        model: keras.Model,
        output_stride: int,
        anchored: frozenset[str] = frozenset(),
        gates: frozenset[str] = frozenset(),
    ) -> None:
        self.output_stride: int = output_stride
        self.anchored: frozenset[str] = anchored
        self.gates: frozenset[str] = gates
        self.grids: dict[str, Grid] = {}
        self.tensors: dict[tuple[str, int], Grid] = {}
        self.changes: dict[str, dict[str, Any]] = {}
        self.trims: set[str] = set()
        self.resized: set[str] = set()
        self.conflicts: set[str] = set()
        self._padded = {}  # a ZeroPadding2D's tensor -> path, layer, grid
        self._change_of = {}  # id of a layer with weights -> its change
        self._absorbed = set()  # paths of those that a convolution took over
        self._uses = {}  # path of a model -> how often tensors, layers are used
        inputs = [
            # A vector or a cell as second input has no position.
            Grid(
                Fraction(1),
                size=((i, 0), (i, 0)),
                is_pooled=len(tensor.shape) < 3 or _is_cell(tensor),
            )
            for i, tensor in enumerate(graph_of(model).inputs)
        ]
        self._walk(model, inputs, "")

    def _walk(self, model, inputs, prefix):
        """Computes the grids of the outputs of a model."""
        graph = graph_of(model)
        nodes = nodes_of(graph)
        uses = collections.Counter(node.operation.name for node in nodes)
        uses.update(id(t) for node in nodes for t in node.input_tensors)
        uses.update(id(t) for t in graph.outputs)
        self._uses[prefix] = uses
        tensors = {
            id(t): grid for t, grid in zip(graph.inputs, inputs, strict=True)
        }
        for node in nodes:
            if node.is_input:
                outputs = [tensors[id(t)] for t in node.output_tensors]
            else:
                grids = [tensors[id(t)] for t in node.input_tensors]
                outputs = self._visit(node, grids, prefix)
            self.grids[prefix + node.operation.name] = outputs[0]
            tensors |= {
                id(t): grid
                for t, grid in zip(node.output_tensors, outputs, strict=True)
            }
        self.tensors |= {(prefix, name): grid for name, grid in tensors.items()}
        return [tensors[id(t)] for t in graph.outputs]

    def _visit(self, node, grids, prefix):
        """Computes the grids of the outputs of a node."""
        layer, path = node.operation, prefix + node.operation.name
        if isinstance(layer, rewritable.Trim):
            return grids
        if isinstance(layer, keras.Model) and is_functional(layer):
            if any(grid.rate > 1 for grid in grids):
                self.resized.add(path)
            return self._walk(layer, grids, f"{path}/")
        grid = self._join(path, node, grids)
        if isinstance(layer, _POOLED):
            grid = dataclasses.replace(grid, is_pooled=True)
        elif self._is_gate(layer, path, node):
            grid = self._visit_gate(layer, path, grid)
        elif isinstance(layer, WINDOWS):
            grid = self._visit_window(layer, path, node, grid)
        elif isinstance(layer, DilatedReparamBlock):
            self._dilate(layer, path, 1 if grid.is_pooled else grid.rate)
        elif isinstance(layer, _PADS_AND_CROPS):
            self._padded[id(node.output_tensors[0])] = path, layer, grid
            grid = self._visit_pad_or_crop(layer, path, grid)
        else:
            grid = self._visit_other(layer, path, node, grid)
        if _reduces(node):
            grid = dataclasses.replace(grid, reduced_by=path)
        return [grid] * len(node.output_tensors)

    def _join(self, path, node, grids):
        """Returns the common grid of joined maps."""
        maps = list(zip(node.input_tensors, grids, strict=True))
        self._check_join(path, maps)
        # A resize to the size of a map broadcasts nothing.
        resizes = isinstance(node.operation, BilinearResize)
        if not resizes and any(_is_map(tensor) for tensor, _ in maps):
            self.gates |= {
                grid.reduced_by
                for tensor, grid in maps
                if _is_cell(tensor) and grid.reduced_by and not grid.is_pooled
            }
            maps = [(t, grid) for t, grid in maps if _is_map(t)]
        # A tensor pooled to one cell keeps the stride of what it was.
        placed = [g for _, g in maps if not g.is_pooled] or grids
        stride = max(g.stride for g in placed)
        placed = [g for g in placed if g.stride == stride]
        grid = placed[0]
        if len(grids) > 1:
            grid = dataclasses.replace(grid, reduced_by="")
        if any(
            (g.origin, g.phases) != (grid.origin, grid.phases) for g in placed
        ):
            moved = [g.shifted_by for g in placed]
            everyone = frozenset.union(*moved)
            common = frozenset.intersection(*moved)
            self.conflicts |= (everyone - common) or everyone
        if grid.rate > 1 and len({g.size for g in placed}) > 1:
            self.trims.add(path)
            return dataclasses.replace(grid, size=((path, 0), (path, 0)))
        return grid

    def _check_join(self, path, maps):
        """Raises `ValueError` if a dense map meets one of another size."""
        if any(_is_map(tensor) for tensor, _ in maps):
            # Vectors and tokens have no cells.
            maps = [(t, grid) for t, grid in maps if len(t.shape) == 4]
        placed = [g for _, g in maps if not g.is_pooled]
        if all(grid.rate == 1 for grid in placed):
            return
        first = placed[0]
        for tensor, grid in maps:
            if grid.is_pooled:
                if _is_map(tensor):
                    raise InputError(
                        f"Layer `{path}` joins `{producer(tensor).name}`, a "
                        "map of fixed size that was spread from one cell, and "
                        "cannot be made dense to output stride "
                        f"{self.output_stride}. Broadcast the cell by Multiply "
                        f"or Add, or use output stride {first.stride}."
                    )
            elif (grid.stride, grid.rate) != (first.stride, first.rate):
                raise InputError(
                    f"Layer `{path}` joins feature maps of different density "
                    "and cannot be made dense."
                )
            elif first.differs_in_size(grid):
                reduced_by = grid.reduced_by or first.reduced_by
                if reduced_by:
                    raise self._no_dense_gate(reduced_by, grid)
                raise InputError(
                    f"Layer `{path}` joins feature maps of different size and "
                    "cannot be made dense to output stride "
                    f"{self.output_stride}."
                )

    def _no_dense_gate(self, path, grid):
        return InputError(
            f"Layer `{path}` reduces rows or columns to one by a window of "
            "fixed size, and cannot be made dense to output stride "
            f"{self.output_stride}. Use GlobalAveragePooling2D(keepdims=True) "
            f"instead, or at least output stride {grid.stride}."
        )

    def _is_gate(self, layer, path, node):
        if not _is_cell(node.output_tensors[0]):
            return False
        # Windows of unequal strides that leave one cell cover a whole map.
        uneven = isinstance(layer, WINDOWS) and len({*pair(layer.strides)}) > 1
        return uneven or path in self.gates

    def _visit_gate(self, layer, path, grid):
        """Visits a layer whose cell stands for the whole map."""
        if grid.is_pooled:
            return grid
        if grid.rate > 1:
            raise self._no_dense_gate(path, grid)
        if isinstance(layer, keras.layers.Layer):
            self._change(layer, path, restored(layer))
        return dataclasses.replace(grid, is_pooled=True)

    def _change(self, layer, path, change):
        kept = self.changes.setdefault(path, change)
        if layer.weights:
            # Nested models that share the layer share its copy too.
            kept = self._change_of.setdefault(id(layer), kept)
        if kept != change:
            raise InputError(
                f"Layer `{path}` is shared between feature maps of "
                "different strides and cannot be made dense."
            )

    def _visit_pad_or_crop(self, layer, path, grid):
        """Visits ZeroPadding2D or Cropping2D, scaled to dense cells."""
        change = restored(layer)
        key = "padding" if hasattr(layer, "padding") else "cropping"
        cells = change.get(key, getattr(layer, key))
        sign = 1 if key == "padding" else -1
        if grid.rate > 1:
            scaled = tuple(tuple(n * grid.rate for n in side) for side in cells)
            change = {key: scaled, "original": {key: cells}}
        if path not in self._absorbed:
            self._change(layer, path, change)
        return grid.padded([sign * grid.rate * sum(side) for side in cells])

    def _dilate(self, layer, path, rate):
        """Multiplies the rate of a block whose map keeps its size."""
        change = restored(layer)
        if rate > 1:
            own = change.get("atrous_rate", layer.atrous_rate)
            change = {
                "atrous_rate": tuple(n * rate for n in pair(own)),
                "original": {"atrous_rate": own},
            }
        self._change(layer, path, change)

    def _visit_window(self, layer, path, node, grid):
        """Visits a convolution or pooling layer."""
        change = restored(layer)
        if grid.is_pooled:
            self._change(layer, path, change)
            return grid
        config = {**layer.get_config(), **change}
        window = _Window.of(path, config, node.input_tensors[0].shape[1:3])
        stride, traded = window.stride, 1
        if stride * grid.stride > self.output_stride:
            traded = stride
        if traded == 1 and (grid.rate == 1 or not any(window.reach)):
            self._change(layer, path, change)
            return grid.after_stride(stride, window.shift)
        if type(layer) not in OURS and not hasattr(layer, "original"):
            raise InputError(
                f"Layer `{path}` cannot be made dense to output stride "
                f"{self.output_stride}: only Keras' own layers can. "
                f"Received: a layer of type {type(layer).__name__}"
            )
        if window.pads is None:
            after, change = self._dense_same(path, window, grid, traded)
        else:
            window, grid = self._absorb_padding(layer, node, window, grid)
            after, change = self._dense_valid(path, window, grid, traded)
        rate = grid.rate if any(window.reach) else 1
        change = {
            "strides": (1, 1),
            "dilation_rate": tuple(d * rate for d in window.dilation),
            "pads": None,
            "anchor": None,
            **change,
            "original": window.original,
        }
        self._change(layer, path, change)
        return dataclasses.replace(
            after, stride=grid.stride * stride, rate=grid.rate * traded
        )

    def _dense_same(self, path, window, grid, traded):
        """Converts a `same` layer, whose padding depends on its map size."""
        rate = grid.rate
        padding_depends_on_size = any(
            reach // 2 != max(reach + 1 - rest, 0) // 2
            for reach in window.reach
            for rest in range(1, traded + 1)  # of the size by the stride
        )
        if padding_depends_on_size and path in self.anchored:
            return grid, {"padding": "same", "anchor": grid.origin}
        if padding_depends_on_size:
            phase = (rate, traded, window.reach, grid.origin, grid.size)
            grid = dataclasses.replace(
                grid,
                phases=(*grid.phases, phase),
                shifted_by=grid.shifted_by | {path},
            )
        half_padding = [
            (n // 2 * rate, (n - n // 2) * rate) for n in window.reach
        ]
        return grid, _padding(half_padding, window.reach, rate)

    def _dense_valid(self, path, window, grid, traded):
        """Converts a layer of known padding; keeps the map size if possible."""
        rate = grid.rate
        shrinkage = [-n for n in window.shift]
        keeps_size = all(0 <= n < traded for n in shrinkage)
        move = shrinkage if keeps_size and path not in self.anchored else (0, 0)
        pads = [
            ((before + n) * rate, after * rate)
            for (before, after), n in zip(window.pads, move, strict=True)
        ]
        grown = [
            sum(p) - n * rate for p, n in zip(pads, window.reach, strict=True)
        ]
        after = dataclasses.replace(
            grid.padded(grown),
            origin=tuple(
                at + n * rate for at, n in zip(grid.origin, move, strict=True)
            ),
            shifted_by=grid.shifted_by | ({path} if any(move) else frozenset()),
        )
        return after, _padding(pads, window.reach, rate)

    def _absorb_padding(self, layer, node, window, grid):
        """Merges a preceding ZeroPadding2D into a convolution."""
        tensor = node.input_tensors[0]
        path, source, before = self._padded.get(id(tensor), (None,) * 3)
        if (
            not isinstance(source, keras.layers.ZeroPadding2D)
            or not isinstance(layer, CONVOLUTIONS)
            or not any(window.reach)
            or any(n for pads in window.pads for n in pads)
        ):
            return window, grid
        uses = self._uses[path.removesuffix(source.name)]
        if uses[id(tensor)] > 1 or uses[source.name] > 1:
            return window, grid
        self._absorbed.add(path)
        padding = restored(source).get("padding", source.padding)
        self.changes[path] = {
            "padding": ((0, 0), (0, 0)),
            "original": {"padding": padding},
        }
        return dataclasses.replace(window, pads=padding), before

    def _visit_other(self, layer, path, node, grid):
        """Visits any other layer, which must be point-wise or is refused."""
        if grid.is_pooled or is_cellwise(layer):
            return grid
        more = growth(node)
        # A closed block may stride where the original network does.
        stays = grid.rate == 1 and len(node.output_tensors) == 1
        if not (stays and more and grid.stride / more <= self.output_stride):
            _check_hidden(layer, path, grid)
        if more == 0:
            return dataclasses.replace(grid, is_pooled=True)
        if more == 1 and not isinstance(layer, _NOT_CONVERTIBLE):
            if grid.rate > 1 and not leaves_cells_alone(
                layer, node.arguments.args, node.arguments.kwargs
            ):
                raise InputError(
                    f"Layer `{path}` ({type(layer).__name__}) mixes cells "
                    "and cannot be dilated; make it of Keras' 2D "
                    "convolutions and pooling layers. Its stride in the "
                    f"original network is {grid.stride}."
                )
            return grid
        stride = grid.stride / more if more else grid.stride
        if grid.rate > 1 or stride > self.output_stride:
            raise InputError(
                f"Layer `{path}` ({type(layer).__name__}) moves cells and "
                f"cannot be made dense to output stride {self.output_stride}. "
                f"Its stride in the original network is {grid.stride}."
            )
        return dataclasses.replace(
            grid, size=((path, 0), (path, 0)), stride=stride
        )


@dataclasses.dataclass(frozen=True)
class _Window:
    """Parameters of a sliding window. Pairs are (rows, columns)."""

    stride: int
    dilation: tuple[int, int]
    reach: tuple[int, int]  # distance from the first to the last covered cell
    pads: Pads | None  # ((top, bottom), (left, right)), or None for `same`
    original: dict[str, Any]  # values that a dense layer stores

    @property
    def shift(self):
        """Output size minus input size at stride 1."""
        if self.pads is None:
            return (0, 0)
        return tuple(
            sum(p) - n for p, n in zip(self.pads, self.reach, strict=True)
        )

    @classmethod
    def of(cls, path, config, size):
        strides, reach = pair(config["strides"]), _reach(config)
        same, pads = config["padding"] == "same", config.get("pads")
        more = [sum(one) for one in pads] if pads else (0, 0)
        # An axis on which the window has one position needs no stride.
        used = [
            stride
            for stride, n, added, lost in zip(
                strides, size, more, reach, strict=True
            )
            if n is None or (n if same else n + added - lost) != 1
        ] or strides
        if len(set(used)) > 1:
            raise InputError(
                f"Layer `{path}` has unequal strides. "
                f"Received: strides={strides}"
            )
        if config.get("data_format") == "channels_first":
            raise InputError(
                f"Layer `{path}` must have channels last. "
                "Received: data_format='channels_first'"
            )
        dilation = pair(config.get("dilation_rate", 1))
        original = {
            "strides": [used[0]] * 2,
            "dilation_rate": list(dilation),
            "padding": config["padding"],
        }
        if pads:
            original["pads"] = [list(p) for p in pads]
        return cls(
            used[0],
            dilation,
            reach,
            None if same else pads or ((0, 0), (0, 0)),
            original,
        )


def _reach(config):
    kernel = config.get("kernel_size", config.get("pool_size"))
    dilation = config.get("dilation_rate", 1)
    return tuple(
        (k - 1) * d for k, d in zip(pair(kernel), pair(dilation), strict=True)
    )


def _padding(pads, reach, rate):
    """Returns the configuration values for this padding."""
    if all(
        n % 2 == 0 and p == (n // 2 * rate, n // 2 * rate)
        for p, n in zip(pads, reach, strict=True)
    ):
        return {"padding": "same"}
    pads = tuple(tuple(p) for p in pads)
    return {
        "padding": "valid",
        "pads": pads if any(n for p in pads for n in p) else None,
    }


def _is_map(tensor):
    return len(tensor.shape) == 4 and not _is_cell(tensor)


def _is_cell(tensor):
    return len(tensor.shape) == 4 and tuple(tensor.shape[1:3]) == (1, 1)


def _reduces(node):
    """Returns True if an operation leaves one row or column of several."""
    before, after = node.input_tensors[0].shape, node.output_tensors[0].shape
    return len(before) == len(after) == 4 and any(
        n == 1 != more for n, more in zip(after[1:3], before[1:3], strict=True)
    )


def is_cellwise(layer: keras.Operation) -> bool:
    """Returns True for a known layer that acts on each cell alone."""
    # A subclass from elsewhere may compute something else.
    known = type(layer).__module__.startswith(("keras.", "keras_aspp."))
    axes = getattr(layer, "axis", -1)
    axes = [axes] if isinstance(axes, int) else list(axes)
    return known and isinstance(layer, _CELLWISE) and axes in ([-1], [3])


def _check_hidden(layer, path, grid):
    """Raises `ValueError` for a layer with hidden windows of its own."""
    if not isinstance(layer, keras.layers.Layer):
        return
    for hidden in sublayers(layer, include_self=False):
        if isinstance(hidden, _NOT_CONVERTIBLE) or (
            isinstance(hidden, WINDOWS)
            and (
                pair(hidden.strides) != (1, 1)
                or (grid.rate > 1 and any(_reach(hidden.get_config())))
            )
        ):
            raise InputError(
                f"Layer `{path}` ({type(layer).__name__}) holds a "
                f"{type(hidden).__name__} that a rewrite cannot reach; "
                "compose the model of functional parts instead."
            )
