"""Names by which a `.tflite` tells what its operators were.

A convolution by live taps is a 1x1 convolution for each tap. Exports name
their tensors by the convolution, and descriptions read it from there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from keras_aspp.utils.types import Size

_LIVE_TAPS = "live_taps_{}x{}_rate_{}x{}_map_{}x{}"
_PATTERN = re.compile("(?:.*/)?" + _LIVE_TAPS.replace("{}", r"(\d+)") + "[^/]*")


def live_taps_scope(kernel_size: Size, rate: Size, size: Size) -> str:
    """Returns the scope of the tensors of a convolution by live taps.

    Args:
        kernel_size: `(height, width)`, ints > 0.
        rate: atrous rate, `(height, width)`, ints > 0.
        size: `(height, width)` of the map, in cells.
    """
    return _LIVE_TAPS.format(*kernel_size, *rate, *size)


def find_live_taps(names: Iterable[str]) -> Counter[tuple[Size, Size, Size]]:
    """Counts the convolutions by live taps.

    Args:
        names: names of all tensors of a file.

    Returns:
        Counter of `(kernel_size, rate, size)` as in `live_taps_scope`.
    """
    scopes = {}
    for name in names:
        # Names of fused operators are joined.
        for part in name.split(";"):
            if found := _PATTERN.match(part):
                scopes[found[0]] = tuple(map(int, found.groups()))
    return Counter((n[:2], n[2:4], n[4:]) for n in scopes.values())
