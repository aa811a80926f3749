import re

import pytest

from keras_aspp.data.groups import (
    by_group,
    compile_group_by,
    hold_out,
    place_of,
    shared_groups,
)

FRAMES = ["a_1", "a_2", "b_1", "loose"]


def test_names_are_grouped_by_what_the_expression_finds_at_their_beginning():
    pattern = compile_group_by("[a-z]_")
    assert by_group(FRAMES, pattern) == {
        "a_": ["a_1", "a_2"],
        "b_": ["b_1"],
        "loose": ["loose"],
    }


def test_a_group_of_the_expression_names_the_group():
    found = by_group(["day1-v7-f1", "day2-v7-f2"], re.compile(r"day\d-(v\d)"))
    assert found == {"v7": ["day1-v7-f1", "day2-v7-f2"]}


@pytest.mark.parametrize("group_by", [None, ""])
def test_without_an_expression_each_name_is_alone(group_by):
    found = by_group(FRAMES, compile_group_by(group_by))
    assert found == {name: [name] for name in FRAMES}


def test_groups_in_several_splits_are_found():
    names = {"train": FRAMES, "val": ["a_3"], "test": ["c_1", "a_4"]}
    pattern = compile_group_by("[a-z]_")
    assert shared_groups(names, pattern) == {"a_": ["train", "val", "test"]}
    assert shared_groups(names, None) == {}


def test_a_share_of_the_groups_is_held_out_by_their_hash():
    groups = [f"video{i}" for i in range(200)]
    held_out = hold_out(groups, 0.25)
    assert held_out == {group for group in groups if place_of(group) < 0.25}
    assert 30 < len(held_out) < 70


def test_one_group_at_least_is_held_out_and_one_is_left():
    groups = ["a", "b", "c"]
    assert len(hold_out(groups, 1e-9)) == 1
    assert len(hold_out(groups, 1 - 1e-9)) == 2
    for share in (1e-9, 1 - 1e-9):
        assert len(hold_out(["a", "b"], share)) == 1


def test_chosen_groups_are_held_out_whatever_the_share():
    assert hold_out(["a", "b", "c"], 0.1, ["c", "a"]) == {"a", "c"}


@pytest.mark.parametrize("chosen", [[], ["d"], ["a", "d"], ["c", "b", "a"]])
def test_none_all_and_unknown_groups_are_refused(chosen):
    with pytest.raises(ValueError, match="3 groups: a, b, c") as refusal:
        hold_out(["a", "b", "c"], 0.1, chosen)
    assert f"Received: {chosen}" in str(refusal.value)


def test_an_invalid_expression_is_refused():
    with pytest.raises(ValueError, match=r"regular expression.*'\('"):
        compile_group_by("(")
