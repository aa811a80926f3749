"""report: everything that can be said of a model at one image size."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import keras

from keras_aspp.analysis.cost import cost_of
from keras_aspp.analysis.gridding import gridding
from keras_aspp.analysis.receptive_field import receptive_fields_of, windows_of
from keras_aspp.analysis.taps import valid_taps
from keras_aspp.analysis.trace import (
    Trace,
    operation_type,
    output_of,
    trace,
)
from keras_aspp.layers.checks import rate_pair, rate_text
from keras_aspp.utils.types import Size

# A flat model of more layers is summed up by stride, not layer by layer.
MANY_LAYERS = 40


def report(model: keras.Model, image_size: Size) -> dict[str, Any]:
    """Analyzes a model and returns the results as plain values.

    Args:
        model: `keras.Model` of one image; see `trace`.
        image_size: `(height, width)`, ints > 0, in pixels.

    Returns:
        dict that JSON can hold. `stages`: the feature maps of the backbone,
        or the last map of each stride; `head`: what comes after the backbone;
        `atrous`: the dilated convolutions with their valid taps; `gridding`:
        the stacks of them; `cost` and `parts`; `layers`: everything, layer by
        layer; `warnings`: sentences. Sizes are `[height, width]`.

    Raises:
        TypeError, ValueError: see `trace`.
    """
    return report_of(trace(model, image_size))


def report_of(traced: Trace) -> dict[str, Any]:
    """`report` of a model that was followed already.

    Args:
        traced: `Trace`.
    """
    fields = receptive_fields_of(traced)
    costs = cost_of(traced)
    maps = _Maps(traced, fields)
    stages = maps.stages()
    atrous = _atrous(traced, fields, maps)
    stacks = _stacks(traced, maps, stages)
    model = traced.model
    coarsest = max(
        (max(stage["stride"]) for stage in stages if stage["stride"]),
        default=None,
    )
    return {
        "name": model.name,
        "kind": type(model).__name__,
        "backbone": maps.backbone and maps.backbone.operation.name,
        "image_size": list(traced.image_size),
        "output_stride": getattr(model, "output_stride", coarsest),
        "input_scale": getattr(model, "input_scale", 1),
        "atrous_rates": list(getattr(model, "atrous_rates", ())) or None,
        "stages": stages,
        "head": maps.head(),
        "atrous": atrous,
        "gridding": stacks,
        "cost": {
            "parameters": costs.parameters,
            "madds": costs.madds,
            "activation_bytes": costs.activation_bytes,
            "peak_activation_bytes": costs.peak_activation_bytes,
            "uncounted": list(costs.uncounted),
        },
        "parts": _parts(traced, fields, costs),
        "layers": _layers(fields, costs),
        "warnings": _warnings(traced, fields, atrous, stacks, costs),
    }


class _Maps:
    """The feature maps of a model: which layer made which."""

    def __init__(self, traced, fields):
        self.traced, self.fields = traced, fields
        self.field_of, self.maker = {}, {}
        for step, field in zip(traced.steps, fields, strict=True):
            if not step.opened:
                for tensor in step.outputs:
                    self.field_of[id(tensor)] = field
                    self.maker[id(tensor)] = step
        self.backbone = next(filter(self._is_backbone, traced.steps), None)

    def _is_backbone(self, step):
        """A nested model that takes the image down to the last stride."""
        if not step.opened or not isinstance(step.operation, keras.Model):
            return False
        before = self.field_of[id(step.inputs[0])]
        strides = [
            self._stride(tensor) or self._stride_by_size(tensor)
            for tensor in step.outputs
        ]
        coarsest = max(
            self._stride(leaf.outputs[0]) for leaf in self.traced.leaves
        )
        # The image, or a magnified one.
        whole = before.size == (1, 1) or max(before.stride or (1,)) < 1
        return whole and max(strides) > 1 and max(strides) >= coarsest

    def _stride(self, tensor):
        """Pixels per cell, 0 for tensors that are not maps."""
        return max(self.field_of[id(tensor)].stride or (0,))

    def _stride_by_size(self, tensor):
        """Pixels per cell behind layers that see everything, 0 of no map."""
        if len(tensor.shape) != 4 or None in tensor.shape[1:3]:
            return 0
        return max(
            -(-pixels // cells)
            for pixels, cells in zip(
                self.traced.image_size, tensor.shape[1:3], strict=True
            )
        )

    def stages(self):
        """One row for each feature map that the backbone, or all, gives."""
        model, outputs = self.traced.model, self.traced.outputs
        if self.backbone is not None:
            model, outputs = self.backbone.operation, self.backbone.outputs
        structure = output_of(model)
        if isinstance(structure, dict):
            paths = keras.tree.flatten_with_path(structure)
            names = ["/".join(map(str, path)) for path, _ in paths]
            found = zip(names, outputs, strict=True)
        else:
            found = self._last_of_each_stride()
        rows = [_map_row(k, self.field_of[id(t)], t) for k, t in found]
        # Dense maps are of one size: then by what they see.
        return sorted(
            rows,
            key=lambda row: (
                -row["shape"][0] * row["shape"][1],
                row["receptive_field"] or [0],
            ),
        )

    def _last_of_each_stride(self):
        """Going down: maps that a decoder upsamples are not stages."""
        last, coarsest = {}, 1
        inside = f"{self.backbone.path}/" if self.backbone else ""
        for step in self.traced.leaves:
            stride = self._stride(step.outputs[0])
            padding = step.layer_type in ("ZeroPadding2D", "Pad")
            if (
                stride >= coarsest
                and step.path.startswith(inside)
                and not padding
            ):
                coarsest = stride
                last[coarsest] = step.outputs[0]
        if len(last) > 1:
            last.pop(1, None)
        return [(f"stride {at:g}", tensor) for at, tensor in last.items()]

    def head(self):
        """Rows of what comes after the backbone, and of parts of parts."""
        inside = self.backbone and f"{self.backbone.path}/"
        rows = []
        for step, field in zip(self.traced.steps, self.fields, strict=True):
            depth = step.path.count("/")
            # Of a model without a backbone, its composite layers.
            shown = step.opened if inside is None else step.inputs
            if depth == 1:
                shown = step.opened
            elif depth > 1 or isinstance(step.operation, keras.Model):
                shown = False
            if shown and not (inside and step.path.startswith(inside)):
                rows.append(_map_row(step.path, field, step.outputs[0]))
        return rows


def _map_row(name, field, tensor):
    return {
        "name": name,
        "layer": field.path,
        "kind": field.layer_type,
        "shape": list(tensor.shape[1:]),
        **_reach(field),
    }


def _reach(field):
    return {
        "stride": field.stride and list(field.stride),
        "receptive_field": field.size and list(field.size),
        "center": field.center and list(field.center),
        "global": field.is_global,
        "assumed": field.assumed,
    }


def _square(pair):
    return pair is not None and len(pair) == 2 and pair[0] == pair[1]


def _one_or_pair(pair):
    """Returns `[height, width]`, or one int where both are equal."""
    return pair[0] if _square(pair) else list(pair)


def _atrous(traced, fields, maps):
    """Dilated convolutions, those of one place and rate in one row."""
    rows = {}
    for step, field in zip(traced.steps, fields, strict=True):
        dilated = field.dilation is not None and max(field.dilation) > 1
        if not dilated or len(field.dilation) != 2 or len(step.shape) != 3:
            continue
        cells, pads = _padded_map(step, maps)
        place = step.path.rpartition("/")[0]
        key = (place, field.kernel_size, field.dilation, cells, pads)
        if key not in rows:
            rows[key] = _atrous_row(place or step.path, field, cells, pads)
        elif not place:
            first = rows[key]["name"].split(" ... ")[0]
            rows[key]["name"] = f"{first} ... {step.path}"
        rows[key]["layers"] += 1
        rows[key].update(_reach(field))
    return list(rows.values())


def _padded_map(step, maps):
    """Returns the size of the map a convolution reads, and the zeros around it.

    Zeros of padding layers before it count as its own; `None` where its window
    is not known.
    """
    source, windows = step.inputs[0], windows_of(step)
    if windows is None:
        return tuple(source.shape[1:3]), None
    first = [int(w.first[0]) for w in windows]
    last = [
        int(w.last[0]) + (n - 1) * w.advance
        for w, n in zip(windows, step.shape[:2], strict=True)
    ]
    while _pads_zeros(maker := maps.maker.get(id(source))):
        shifts = [int(w.first[0]) for w in windows_of(maker)]
        first = [n + shift for n, shift in zip(first, shifts, strict=True)]
        last = [n + shift for n, shift in zip(last, shifts, strict=True)]
        source = maker.inputs[0]
    cells = tuple(source.shape[1:3])
    pads = tuple(
        (max(-low, 0), max(high + 1 - n, 0))
        for low, high, n in zip(first, last, cells, strict=True)
    )
    return cells, pads


def _pads_zeros(step):
    """Returns True for a step that puts zeros around a map."""
    if step is None:
        return False
    if isinstance(step.operation, keras.layers.ZeroPadding2D):
        return True
    values = (*step.arguments[1:], *step.keywords.values())
    return (
        operation_type(step) == "Pad"
        and step.operation.mode == "constant"
        and all(value in (None, 0) for value in values)
    )


def _atrous_row(name, field, cells, pads):
    kernel, rate = field.kernel_size[0], field.dilation
    taps = None
    if pads is not None and _square(field.kernel_size) and kernel % 2:
        taps = valid_taps(rate, cells, kernel, pads)
    spacing = field.stride and [
        r * s for r, s in zip(rate, field.stride, strict=True)
    ]
    return {
        "name": name,
        "layers": 0,
        "kernel_size": list(field.kernel_size),
        "rate": _one_or_pair(rate),
        "map": list(cells),
        "pads": pads and list(map(list, pads)),
        "spacing_px": spacing and _one_or_pair(spacing),
        "valid_taps": taps and taps.mean,
        "degenerate": bool(taps and taps.degenerate),
    }


_NO_CHAIN = (), frozenset()


def _stacks(traced, maps, stages):
    """Convolutions in a row on one map, where some of them are dilated."""
    chains = _chains(traced, maps)
    ends = {stage["layer"]: stage["name"] for stage in stages}
    ends |= {
        step.path: step.path
        for step in traced.steps
        if step.opened
        and "/" not in step.path
        and not isinstance(step.operation, keras.Model)
    }
    found, known = [], set()
    for step in traced.steps:
        for tensor in step.outputs[:1]:
            chain, others = chains.get(id(tensor), _NO_CHAIN)
            rates = tuple(rate for rate, _ in chain)
            # A single convolution is not a stack.
            row = len(rates) > 1 and max(map(max, rates)) > 1
            if not row or step.path not in ends or chain in known:
                continue
            known.add(chain)
            run = len(rates)
            while run and max(rates[run - 1]) > 1:
                run -= 1
            found.append(
                {
                    "name": ends[step.path],
                    "of_branches": step.opened or _fill(chain, others),
                    **_stack(chain),
                    "dilated_end": _stack(chain[run:]) if chain[run:] else None,
                }
            )
    return found


def _stack(chain):
    found = gridding([r for r, _ in chain], [k for _, k in chain])
    return {
        "rates": [_one_or_pair(rate_pair(rate)) for rate in found.rates],
        "kernel_sizes": list(found.kernel_sizes),
        "field_cells": _one_or_pair(found.shape),
        "unseen_share": found.unseen_share,
        "common_divisor": found.common_divisor,
        "suggestion": [
            _one_or_pair(rate_pair(rate)) for rate in found.suggestion
        ],
    }


def _chains(traced, maps):
    """The (rate, kernel size) of convolutions since the stride last changed.

    Where branches join, those of the widest. Returns id of a tensor -> these,
    and the set of those of branches that may see what they leave out: one of
    some of its convolutions, such as a shortcut, does not.
    """
    chains = {}
    for step in traced.leaves:
        if not step.inputs:
            continue
        before = [chains.get(id(t), _NO_CHAIN) for t in step.inputs]
        at = max(range(len(before)), key=lambda i: _reach_of(before[i][0]))
        source, (chain, _) = step.inputs[at], before[at]
        others = frozenset().union(*(found for _, found in before))
        for other, _ in before:
            if not Counter(other) <= Counter(chain):
                others |= {*other}
        field = maps.field_of[id(step.outputs[0])]
        if field.stride != maps.field_of[id(source)].stride:
            chain, others = _NO_CHAIN
        elif (
            field.kernel_size is not None
            and _square(field.kernel_size)
            and len(field.dilation) == 2
            and field.kernel_size[0] % 2
            and field.kernel_size[0] > 1
        ):
            chain = (*chain, (field.dilation, field.kernel_size[0]))
        for tensor in step.outputs:
            chains[id(tensor)] = chain, others
    return chains


def _fill(chain, others):
    """Returns True if other branches may see what a chain leaves out.

    Of rates with a common divisor, none sees a cell between its multiples.
    """
    rates = [rate for rate, _ in (*chain, *others)]
    axes = zip(*rates, strict=True)
    return bool(others) and all(math.gcd(*axis) == 1 for axis in axes)


def _reach_of(chain):
    return sum(max(rate) * (kernel - 1) for rate, kernel in chain)


def _parts(traced, fields, costs):
    """Cost by top-level layer, or by stride for a flat model."""
    top = [s for s in traced.steps if "/" not in s.path]
    flat = len(top) > MANY_LAYERS
    composite = {step.path for step in top if step.opened}
    rows = {}
    for field, layer in _paired(fields, costs):
        part = layer.path.split("/")[0]
        if flat and part not in composite:
            stride = field.stride and max(field.stride)
            part = "after pooling" if stride is None else f"stride {stride:g}"
        row = rows.setdefault(
            part,
            {"name": part, "parameters": 0, "madds": 0, "activation_bytes": 0},
        )
        for key in ("parameters", "madds", "activation_bytes"):
            row[key] += getattr(layer, key)
    return list(rows.values())


def _layers(fields, costs):
    """Receptive field and cost of every non-composite layer."""
    return [
        {
            "name": field.path,
            "kind": field.layer_type,
            "shape": list(field.shape),
            "kernel_size": field.kernel_size and list(field.kernel_size),
            "dilation": field.dilation and list(field.dilation),
            **_reach(field),
            "parameters": layer.parameters,
            "madds": layer.madds,
            "activation_bytes": layer.activation_bytes,
        }
        for field, layer in _paired(fields, costs)
    ]


def _paired(fields, costs):
    """Yields the `ReceptiveField` and the `LayerCost` of each call.

    All calls of a shared layer have one path, and so have operations of one
    type: the first field of a path belongs to its first cost.
    """
    by_path = {}
    for layer in costs.layers:
        by_path.setdefault(layer.path, []).append(layer)
    for field in fields:
        if by_path.get(field.path):
            yield field, by_path[field.path].pop(0)


def _warnings(traced, fields, atrous, stacks, costs):
    found = []
    for row in atrous:
        if row["degenerate"]:
            cells = "x".join(map(str, row["map"]))
            found.append(
                f"{row['name']}: rate {rate_text(row['rate'])} reaches beyond "
                f"the {cells} map; the convolution acts as a 1x1."
            )
    for stack in stacks:
        # What the widest branch leaves out, others of the part may see.
        if stack["unseen_share"] > 0 and not stack["of_branches"]:
            cells = rate_text(rate_pair(stack["field_cells"]))
            found.append(
                f"{stack['name']}: convolutions of rates {stack['rates']} "
                f"never see {stack['unseen_share']:.0%} of the "
                f"{cells} cells they span. "
                f"Rates {stack['suggestion']} would see all they span."
            )
    guessed = [
        step.path
        for step, field in zip(traced.steps, fields, strict=True)
        if field.assumed and not step.opened
    ]
    if guessed:
        found.append(
            f"{guessed[0]}: its reach is not known; receptive fields from "
            "there on are guesses."
        )
    if costs.uncounted:
        found.append(
            f"{', '.join(costs.uncounted)}: could not be opened, leave a size "
            "open, or have no rule; multiply-adds are a lower bound."
        )
    return found
