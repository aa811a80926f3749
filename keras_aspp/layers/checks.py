"""Checks of layer arguments."""

from __future__ import annotations

from collections.abc import Sequence

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int, check_number
from keras_aspp.utils.types import BatchNorm, ImagePoolingMode, Rate


def check_odd(kernel_size: int) -> int:
    """Returns `kernel_size`, or raises `ValueError` if it is no odd int > 0."""
    kernel_size = check_int("kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        raise InputError(
            "`kernel_size` must be odd, so that there is a center tap. "
            f"Received: kernel_size={kernel_size}"
        )
    return kernel_size


MAX_RATE = 4096  # in feature cells


def rate_pair(rate: Rate) -> tuple[int, int]:
    """Returns a rate as `(height, width)`."""
    return (rate, rate) if isinstance(rate, int) else tuple(rate)


def rate_text(rate: Rate) -> str:
    """Formats a rate: `6`, or `6x12` for 6 rows and 12 columns."""
    return str(rate) if isinstance(rate, int) else "x".join(map(str, rate))


def _as_rate(value):
    """Returns a valid rate, an int where both axes are equal, or `None`."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    axes = tuple(value) if pair else (value, value)
    if any(type(n) is not int or n < 1 for n in axes):
        return None
    return axes[0] if axes[0] == axes[1] else axes


def check_atrous_rate(name: str, value: Rate) -> Rate:
    """Returns a rate, an int where both axes are equal.

    Raises:
        ValueError: `value` is neither an int > 0 nor two of them.
    """
    rate = _as_rate(value)
    if rate is None:
        raise InputError(
            f"`{name}` must be an int > 0, or two of them, (height, width). "
            f"Received: {name}={value!r}"
        )
    return rate


def check_atrous_rates(
    atrous_rates: Sequence[Rate], allow_empty: bool = False
) -> tuple[Rate, ...]:
    """Returns `atrous_rates` as a tuple, or raises `ValueError`."""
    sequence = isinstance(atrous_rates, (list, tuple))
    rates = tuple(map(_as_rate, atrous_rates)) if sequence else (None,)
    if None in rates or not (rates or allow_empty):
        wanted = "sequence" if allow_empty else "non-empty sequence"
        raise InputError(
            f"`atrous_rates` must be a {wanted} of ints > 0, or of pairs "
            f"(height, width) of them. Received: atrous_rates={atrous_rates}"
        )
    if max((max(rate_pair(r)) for r in rates), default=0) > MAX_RATE:
        # Larger than any feature map; its padding would exhaust memory.
        raise InputError(
            f"`atrous_rates` must be {MAX_RATE} at most. "
            f"Received: atrous_rates={rates}"
        )
    return rates


# Normalization: none, batch norm, frozen batch norm, cross-replica batch norm,
# or group norm.
NORMS = (False, True, "freeze", "sync", "group")


def check_fusion(value: str, fusions: Sequence[str]) -> str:
    """Returns `value`, or raises `ValueError` unless it is in `fusions`."""
    if value not in fusions:
        raise InputError(
            f"`fusion` must be one of {fusions}. Received: fusion={value!r}"
        )
    return value


def check_batch_norm_numbers(momentum: float, epsilon: float) -> None:
    """Raises `ValueError` for numbers that no batch norm can have.

    A momentum of 1 and an epsilon of 0 are not useful, but files may hold them.
    """
    check_number("batch_norm_momentum", momentum, "[0, 1]")
    check_number("batch_norm_epsilon", epsilon, "[0, inf)")


def check_input_shape(
    input_shape: Sequence[int | None],
) -> tuple[int | None, int | None, int]:
    """Returns `(height, width, channels)`, or raises `ValueError`."""
    try:
        found = tuple(
            size if size is None else check_int("input_shape", size)
            for size in input_shape
        )
    except (TypeError, InputError):
        found = ()
    if len(found) != 3 or found[2] is None:
        raise InputError(
            "`input_shape` must be (height, width, channels), ints > 0; a "
            "height or width of None leaves it open. "
            f"Received: input_shape={input_shape!r}"
        )
    return found


def check_channels_last(data_format: str) -> None:
    """Raises `ValueError` for a layer of Keras that is channels first."""
    if data_format != "channels_last":
        raise InputError(
            "Layers and models of keras_aspp must be channels last; set "
            "`data_format`, or `keras.config.set_image_data_format`, to "
            f"'channels_last'. Received: data_format={data_format!r}"
        )


def check_image_pooling(value: ImagePoolingMode) -> ImagePoolingMode:
    """Returns a bool or `"bias"`, or raises `ValueError`."""
    if isinstance(value, str) and value == "bias":
        return value
    # Files may hold numbers and null.
    if value is None or value in (0, 1):
        return bool(value)
    raise InputError(
        "`image_pooling` must be True, False or 'bias'. "
        f"Received: image_pooling={value!r}"
    )


def check_batch_norm(value: BatchNorm) -> BatchNorm:
    """Returns `value`, or raises `ValueError` unless it is in `NORMS`."""
    if value not in NORMS:
        raise InputError(
            f"`batch_norm` must be one of {NORMS}. "
            f"Received: batch_norm={value!r}"
        )
    return value
