"""Images that belong together, such as frames of a video, in one split."""

from __future__ import annotations

import collections
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from keras_aspp.utils.exceptions import InputError

_SHOWN = 5


def compile_group_by(group_by: str | None) -> re.Pattern[str] | None:
    """Returns the compiled expression, or `None` without one.

    Raises:
        ValueError: not a regular expression.
    """
    if not group_by:
        return None
    try:
        return re.compile(group_by)
    except (re.error, TypeError) as error:
        raise InputError(
            "`group_by` must be a regular expression. "
            f"Received: {group_by!r} ({error})"
        ) from None


def by_group(
    names: Iterable[str], pattern: re.Pattern[str] | None
) -> dict[str, list[str]]:
    """Returns names by what the expression finds at their beginning.

    Args:
        names: names of images, without suffix.
        pattern: see `compile_group_by`. A group is the text of its first
            group, or of the whole match. Without a match, or without an
            expression, each name is a group of its own.
    """
    groups = collections.defaultdict(list)
    for name in names:
        found = pattern.match(name) if pattern else None
        group = name
        if found is not None:
            first = found[1] if pattern.groups else None
            group = found[0] if first is None else first
        groups[group].append(name)
    return dict(groups)


def shared_groups(
    names: Mapping[str, Iterable[str]], pattern: re.Pattern[str] | None
) -> dict[str, list[str]]:
    """Returns groups that lie in several splits, with these.

    Args:
        names: names of the images of each split.
        pattern: see `by_group`.
    """
    splits = collections.defaultdict(list)
    if pattern is not None:
        for split, found in names.items():
            for group in by_group(found, pattern):
                splits[group].append(split)
    return {group: found for group, found in splits.items() if len(found) > 1}


def shared_groups_note(
    names: Mapping[str, Iterable[str]], pattern: re.Pattern[str] | None
) -> str | None:
    """Returns a message about groups that lie in several splits, if any."""
    shared = shared_groups(names, pattern)
    if not shared:
        return None
    group, splits = next(iter(shared.items()))
    return (
        f"groups that lie in several splits: {len(shared)} (first {group} in "
        f"{' and '.join(splits)}), which makes scores of these splits too good"
    )


def place_of(name: str) -> float:
    """Returns a number in [0, 1) by a hash of a name, to split by it."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hold_out(
    groups: Sequence[str], fraction: float, chosen: Sequence[str] | None = None
) -> set[str]:
    """Returns the groups that are held out, at least one and not all.

    Args:
        groups: names of groups.
        fraction: share of the groups to hold out, by the hash of their
            names, in (0, 1).
        chosen: the groups to hold out instead, or `None`.

    Raises:
        ValueError: `chosen` is empty, holds all groups, or others.
    """
    if chosen is not None:
        unknown = set(chosen) - set(groups)
        if not chosen or unknown or set(chosen) == set(groups):
            first = ", ".join(sorted(groups)[:_SHOWN])
            more = ", ..." * (len(groups) > _SHOWN)
            raise InputError(
                "`validation_groups` must be some of the groups that "
                f"`group_by` makes, and not all. Received: {list(chosen)}; "
                f"{len(groups)} groups: {first}{more}"
            )
        return set(chosen)
    held_out = {group for group in groups if place_of(group) < fraction}
    if not held_out and len(groups) > 1:
        held_out = {min(groups, key=place_of)}
    if len(held_out) == len(groups) > 1:
        held_out -= {max(groups, key=place_of)}
    return held_out
