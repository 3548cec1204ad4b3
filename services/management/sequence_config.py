"""The Config of a Sequence view: what its sequences are, and of which behaviours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chassis import errors
from services.management.inputs import invalid, json_object
from services.management.rows import Row

MAX_LENGTH = 10_000
FULL_SEQUENCE, ONLY_BEHAVIOR = "full_sequence", "only_behavior"
# So many behaviours of each event are kept of each user where only behaviours are asked for, and not how many.
_KEPT = 1_000
_BY_ITEM = ("user_id", "item_id", "event")


@dataclass(frozen=True)
class Wanted:
    """One sequence: its names offline and online, the events in it (none: all), and what else is told of each item."""

    offline_name: str
    name: str
    events: Sequence[str]
    length: int
    more: Sequence[str]


@dataclass(frozen=True)
class Config:
    """A Sequence view's Config."""

    # The table of ready-made sequences; empty if they are made of behaviours.
    offline_table: str
    offline_key: str
    offline_time: str
    sequences: Sequence[Wanted]
    item: str
    event: str
    time: str
    play_time: str
    # Columns of which no two behaviours of a user may be equal in all.
    unique: Sequence[str]
    # The column that is one of these besides item and event; empty if there is none.
    custom: str
    # A behaviour of an event is shown only if it was played for longer than this.
    play_times: Mapping[str, float]
    # There are no sequences: the behaviours themselves are shown.
    only_behaviours: bool
    # So many behaviours of each event are kept, besides those that sequences show.
    kept: int

    @property
    def windows(self) -> list[tuple[Sequence[str], int, bool]]:
        """What is kept of each user: events (none: all), and how many of the newest, of all of these or of each."""
        # Items that are grouped are shown with all their events: so many of each are needed.
        each = bool(self.custom)
        shown = [(wanted.events, wanted.length, each) for wanted in self.sequences]
        return [*shown, *([((), self.kept, True)] if self.kept else [])]


def config_of(view: Row) -> Config:
    """Raises InvalidArgument for a Config without which nothing can be made."""
    given = json_object("Config", view["config"])

    def text(name: str, needed: bool = False) -> str:
        value = given.get(name, "")
        if not isinstance(value, str) or (needed and not value):
            raise unusable(view, f"needs {name}")
        return value

    mode = text("registration_mode") or FULL_SEQUENCE
    if mode not in (FULL_SEQUENCE, ONLY_BEHAVIOR):
        raise unusable(view, f"needs a registration_mode of {FULL_SEQUENCE} or {ONLY_BEHAVIOR}")
    only_behaviours = mode == ONLY_BEHAVIOR
    listed = [] if only_behaviours else given.get("seq_config")
    if not isinstance(listed, list) or not (listed or only_behaviours) or not all(isinstance(x, dict) for x in listed):
        raise unusable(view, "needs seq_config, a list")
    kept = given.get("seq_len_online") or 0
    if not isinstance(kept, int) or isinstance(kept, bool) or not 0 <= kept <= MAX_LENGTH:
        raise unusable(view, f"needs a seq_len_online of 1 to {MAX_LENGTH}, or none")
    table = "" if only_behaviours else text("offline_seq_table_name")
    play_times = _play_times(view, text("play_time_filter"))
    item, event, time = (text(name, not table) for name in ("item_id_field", "event_field", "timestamp_field"))
    return Config(
        offline_table=table,
        offline_key=text("offline_seq_table_pk_field", bool(table)),
        offline_time=text("offline_seq_table_event_time_field", bool(table)),
        sequences=[_wanted(view, each) for each in listed],
        item=item,
        event=event,
        time=time,
        play_time=text("play_time_field", bool(play_times)),
        unique=(unique := _unique(view, given, item, event, time)),
        custom="".join(unique[2:]) if unique[2:] != [time] else "",
        play_times=play_times,
        only_behaviours=only_behaviours,
        kept=kept or (_KEPT if only_behaviours else 0),
    )


def _wanted(view: Row, given: dict[str, Any]) -> Wanted:
    offline, online = given.get("offline_seq_name", ""), given.get("online_seq_name", "")
    events, length, more = given.get("seq_event", ""), given.get("seq_len"), given.get("online_behavior_table_fields")
    if not all(isinstance(each, str) for each in (offline, online, events)) or not (offline or online):
        raise unusable(view, "needs offline_seq_name or online_seq_name in each seq_config")
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MAX_LENGTH:
        raise unusable(view, f"needs a seq_len of 1 to {MAX_LENGTH} in each seq_config")
    if not isinstance(more or [], list) or not all(isinstance(each, str) for each in more or []):
        raise unusable(view, "needs a list of names as online_behavior_table_fields")
    return Wanted(
        offline or online, online or offline, [each for each in events.split("|") if each], length, more or []
    )


def _unique(view: Row, given: dict[str, Any], item: str, event: str, time: str) -> list[str]:
    method = given.get("deduplication_method") or list(_BY_ITEM)
    custom = given.get("custom_deduplication_field") or ""
    if not isinstance(custom, str) or (custom and custom in (item, event, time)):
        raise unusable(view, "needs another field as custom_deduplication_field, or none")
    if method == list(_BY_ITEM):
        return [item, event, *([custom] if custom else [])]
    if method == [*_BY_ITEM, "timestamp"]:
        return [item, event, time]
    raise unusable(view, f"needs a deduplication_method of {list(_BY_ITEM)}, with or without 'timestamp' at its end")


def _play_times(view: Row, text: str) -> dict[str, float]:
    """`play:3;look:0.5`, by event."""
    found = {}
    for part in filter(None, text.split(";")):
        event, _, bound = part.partition(":")
        try:
            found[event] = float(bound)
        except ValueError:
            found[event] = math.nan
        if not event or not math.isfinite(found[event]):
            raise unusable(view, f"needs a play_time_filter such as 'play:3;look:0.5', and not {part!r}")
    return found


def unusable(view: Row, why: str) -> errors.InvalidArgument:
    """What to raise for a Config that does not do."""
    return errors.InvalidArgument(f"the Config of view {view['name']} {why}", field="Config")


def names_of(text: str) -> set[str]:
    """What a Config, usable or not, calls sequences, offline and online."""
    listed = json_object("Config", text).get("seq_config")
    given = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    names = (each.get(name) for each in given for name in ("offline_seq_name", "online_seq_name"))
    return {name for name in names if isinstance(name, str) and name}


def referenced(text: str) -> tuple[int, str] | None:
    """Id and name of the view that a Config refers to. PAI's SDKs go by the id, and then by the name. Raises
    InvalidArgument."""
    given = json_object("Config", text)
    identifier, title = given.get("referenced_feature_view_id") or 0, given.get("referenced_feature_view_name") or ""
    if not isinstance(identifier, int) or isinstance(identifier, bool) or identifier < 0:
        raise invalid("Config", "needs a number as referenced_feature_view_id")
    if not isinstance(title, str) or (title and not identifier):
        raise invalid("Config", "needs a referenced_feature_view_id where it has a referenced_feature_view_name")
    return (identifier, title) if identifier else None
