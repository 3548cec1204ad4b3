"""Which names an entry must and may hold: derived from the joined groups' keys and from what they are joined on."""

from __future__ import annotations

from collections.abc import Sequence

from services.serving.definitions import Join, ServingKey


def derive(joins: Sequence[Join]) -> tuple[ServingKey, ...]:
    """The serving keys of a view, join by join in key order.

    The first group's keys are all required. A key of another group that is joined with a *key* of the first one takes
    its value from there; every other key is required, under its prefixed name, or under one with a made-up prefix
    where that name is taken.
    """
    first = joins[0]
    found = [ServingKey(0, name, first.prefix, required=True) for name in first.group.primary_key]
    taken = {key.required_entry for key in found}
    for index, join in enumerate(joins[1:], start=1):
        joined_with = {right: left for left, right in join.on if left in first.group.primary_key}
        for name in join.group.primary_key:
            if name in joined_with:
                entry = first.prefix + joined_with[name]
                found.append(ServingKey(index, name, join.prefix, required=False, join_on=entry))
                continue
            prefix = join.prefix
            if prefix + name in taken:
                prefix = f"fgId_{join.group.id}_{index}_"
            found.append(ServingKey(index, name, prefix, required=True))
            taken.add(prefix + name)
    return tuple(found)
