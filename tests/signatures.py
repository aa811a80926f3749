"""Caches signatures, which Keras reads whenever it builds or calls a layer.

Python computes a signature anew each time, and until Python 3.12 also the
members of a protocol, by which TensorFlow recognizes tensors. Together they
take a tenth of the CPU time of tests that build models.
"""

import functools
import inspect
import types
import typing
import weakref


def cache_signatures():
    """Caches signatures, members of protocols, and what Keras never saves."""
    from keras.src.saving import saving_lib

    inspect._signature_from_function = _cached(inspect._signature_from_function)
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)
    # Keras 3.15 stores it under one name and asks for another.
    saving_lib.get_attr_skipset = functools.cache(saving_lib.get_attr_skipset)


def _cached(compute):
    """Wraps `inspect._signature_from_function`."""
    known = weakref.WeakKeyDictionary()

    @functools.wraps(compute)
    def signature_of(signature_type, function, **options):
        # The other options are the names by which strings are evaluated.
        bound = options.get("skip_bound_arg", True)
        if (
            signature_type is not inspect.Signature
            or type(function) is not types.FunctionType
            or any(v for k, v in options.items() if k != "skip_bound_arg")
        ):
            return compute(signature_type, function, **options)
        found = known.setdefault(function, {})
        if bound not in found:
            found[bound] = compute(signature_type, function, **options)
        return found[bound]

    return signature_of
