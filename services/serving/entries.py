"""Entries and passed features of a request, as the JSON text that they were sent as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, overload

import msgspec
import orjson

from chassis import errors
from services.serving import fragments

# Names and JSON texts of values: bytes, or msgspec.Raw, which becomes bytes when it is looked at.
Entry = Mapping[str, Any]

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_optional_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw] | None]).decode


class Column(Sequence[Entry]):
    """Entries that hold one name each, the same, and nothing else."""

    def __init__(self, name: str, values: list[bytes]) -> None:
        self.name = name
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, position: int) -> Entry: ...

    @overload
    def __getitem__(self, position: slice) -> Column: ...

    def __getitem__(self, position: int | slice) -> Entry | Column:
        if isinstance(position, slice):
            return Column(self.name, self.values[position])
        return {self.name: self.values[position]}


def parsed(
    entries: bytes, passed: bytes, usual: Sequence[str], *, batch: bool
) -> tuple[Sequence[Entry], Sequence[Entry | None]]:
    """Entries, and the passed features of each, or none. In a batch both are arrays, otherwise one object.

    `passed` may be empty. `usual` are the names that most entries hold. Raises InvalidArgument.
    """
    try:
        # msgspec takes text for UTF-8 without looking, and what is spliced into an answer must be.
        entries.decode()
        passed.decode()
        if batch:
            found = (len(usual) == 1 and _column(entries, usual[0])) or _decode_objects(entries)
            more = _decode_optional_objects(passed) if passed else []
            return found, [each and _as_bytes(each) for each in more]
        return [_decode_object(entries)], [_as_bytes(_decode_object(passed))] if passed else []
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument(str(error), field="entries") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidArgument(f"not JSON: {error}", reason="MALFORMED_BODY") from None


def _as_bytes(values: Entry) -> Entry:
    return {name: bytes(value) for name, value in values.items()}


def _column(text: bytes, name: str) -> Column | None:
    """Entries of that name, spelled as encoders spell them, whose values are plain. None: it must be looked at closely.

    They are cut out together, without an object for each.
    """
    for opening, between in _spellings(name):
        if text.startswith(opening) and text.endswith(b"}]"):
            values = text[len(opening) : -2].split(between)
            return Column(name, values) if _plain(values) else None
    return None


@lru_cache(4096)
def _spellings(name: str) -> Sequence[tuple[bytes, bytes]]:
    """What an array of such objects begins with, and what is between two values: with blanks and without."""
    quoted = orjson.dumps(name)
    return [(b"[{%b:%b" % (quoted, blank), b"},%b{%b:%b" % (blank, quoted, blank)) for blank in (b" ", b"")]


def _plain(values: list[bytes]) -> bool:
    """Whether all are digits, of which none begins with 0, or all are strings with nothing escaped."""
    if values[0][:1] == b'"':
        return fragments.plain_strings(values)
    return b"".join(values).isdigit() and b"" not in values and b",0" not in b"," + b",".join(values)
