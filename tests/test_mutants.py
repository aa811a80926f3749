"""Mutants differ from the source by one token, and still parse."""

import ast

import pytest
from mutants import mutated, mutations


@pytest.mark.parametrize(
    "source, expected",
    [
        ("a * b", ["a / b"]),
        ("f(*a, -b)", []),
        ("def f(a, *, b=True): pass", ["def f(a, *, b=False): pass"]),
        ("x is not None", ["x is  None"]),
        ("zip(a, b, strict=True)", []),
        (
            "for axis in (1, 2): ...",
            ["for axis in (2, 2): ...", "for axis in (1, 3): ..."],
        ),
        ("'1 + 1'  # a == b", []),
    ],
)
def test_mutations(source, expected):
    found = [mutated(source, *mutation) for mutation in mutations(source)]
    assert found == expected
    for mutant in found:
        ast.parse(mutant)
