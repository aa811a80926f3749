"""Writes the table of docs/backbones.md.

    python docs/backbones.py [NAME...]

Without names, all backbones except those that differ in width only (about ten
minutes on two cores). Rows of other names are kept.
"""

import pathlib
import re
import sys

import keras

from keras_aspp.analysis.cost import cost
from keras_aspp.backbones import (
    create_backbone,
    feature_strides,
    list_backbones,
    with_output_stride,
)

PAGE = pathlib.Path(__file__).with_suffix(".md")
SIZE = (513, 513)
STRIDES = (32, 16, 8)


def row(name):
    """Returns one row: parameters, MAdds, channels of the features."""
    model = create_backbone(name, STRIDES[0], weights=None)
    madds = []
    for stride in STRIDES:
        found = cost(with_output_stride(model, stride), SIZE)
        assert not found.uncounted, found.uncounted  # noqa: S101
        madds.append(f"{found.madds / 1e9:.2f}")
    features = ", ".join(
        f"{key.removeprefix('stride_')}: {map_.shape[-1]}"
        for key, map_ in model.output.items()
    )
    natural = max(feature_strides(model).values())
    millions = f"{found.parameters / 1e6:.2f}"
    return " | ".join(["", name, millions, str(natural), *madds, features, ""])


def main(names):
    """Writes the rows of `names`."""
    for name in names:
        line = row(name).strip()
        page = PAGE.read_text()
        known = re.compile(rf"^\| {name} \|.*$", re.M)
        if known.search(page):
            page = known.sub(line, page)
        else:
            page = page.replace("\n<!-- end -->", f"\n{line}\n<!-- end -->")
        PAGE.write_text(page)
        print(line, flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    widths = re.compile(r"_0\.\d+$|_1\.\d$")
    main(sys.argv[1:] or [n for n in list_backbones() if not widths.search(n)])
