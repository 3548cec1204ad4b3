"""Canonical keys: the bytes by which a row is found, the same however its key was written.

`36` and `"36"` are one bigint, `"2022-01-24"` and 1642982400000 (milliseconds) one date. A composite key's parts are
joined by `|`; texts within it have that character and the backslash escaped, so two keys never meet.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Context, Decimal, InvalidOperation
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from chassis.datatypes import DataType
from services.serving import fragments

Canonical = Callable[[bytes], bytes]

_TEXT_KINDS = ("string", "varchar", "char")
# Kind -> digits that always fit, and bits.
_INTEGERS = {"tinyint": (2, 8), "smallint": (4, 16), "int": (9, 32), "bigint": (18, 64)}
_INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000
_ZERO = 0x30


class WrongType(ValueError):
    """A key's value does not fit its column."""


def canonical(type_: DataType) -> Canonical:
    """The function that turns the JSON text of a key's value into canonical bytes. It raises WrongType."""
    if type_.kind in _INTEGERS:
        fast_digits, bits = _INTEGERS[type_.kind]
        return partial(_integer, fast_digits, 1 << (bits - 1))
    if type_.kind in _TEXT_KINDS:
        return _text
    if type_.kind == "decimal":
        return _guarded(partial(_decimal, type_.arguments[1]))
    return _guarded({"boolean": _boolean, "date": _date, "timestamp": _timestamp, "binary": _binary}[type_.kind])


def canonical_many(type_: DataType) -> Callable[[list[bytes]], list[bytes]]:
    """`canonical` for many values at once. Those of the common spellings are looked at together, not one by one."""
    one = canonical(type_)
    if type_.kind in _INTEGERS:
        fast_digits = _INTEGERS[type_.kind][0]

        def integers(raws: list[bytes]) -> list[bytes]:
            if len(raws) == 1:
                return [one(raws[0])]
            plain = b"".join(raws).isdigit() and max(map(len, raws)) <= fast_digits
            # A number that begins with 0 is looked at closely.
            return raws if plain and b",0" not in b"," + b",".join(raws) else [one(raw) for raw in raws]

        return integers
    if type_.kind in _TEXT_KINDS:

        def texts(raws: list[bytes]) -> list[bytes]:
            return [raw[1:-1] for raw in raws] if fragments.plain_strings(raws) else [one(raw) for raw in raws]

        return texts
    return lambda raws: [one(raw) for raw in raws]


def join(parts: Sequence[bytes], types: Sequence[DataType]) -> bytes:
    """The canonical key of several columns from those of each."""
    if len(parts) == 1:
        return parts[0]
    return b"|".join(
        part.replace(b"\\", b"\\\\").replace(b"|", b"\\|") if type_.kind in _TEXT_KINDS else part
        for part, type_ in zip(parts, types, strict=True)
    )


def of_columns(columns: Sequence[pa.Array], types: Sequence[DataType]) -> pa.StringArray:
    """The canonical keys of whole rows: `columns` are Arrow arrays of those types, without nulls."""
    parts = [_column(column, type_) for column, type_ in zip(columns, types, strict=True)]
    if len(parts) == 1:
        return parts[0]
    escaped = [
        pc.replace_substring(pc.replace_substring(part, "\\", "\\\\"), "|", "\\|")
        if type_.kind in _TEXT_KINDS
        else part
        for part, type_ in zip(parts, types, strict=True)
    ]
    return pc.binary_join_element_wise(*escaped, "|")


def _column(column: pa.Array, type_: DataType) -> pa.StringArray:
    if type_.kind == "timestamp":
        return column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.string())
    return fragments.plain(column, type_)


def _integer(fast_digits: int, limit: int, raw: bytes) -> bytes:
    if len(raw) <= fast_digits and raw.isdigit() and (raw[0] != _ZERO or len(raw) == 1):
        return raw
    text = _text_of(raw)
    if _INTEGER.fullmatch(text) is None or not -limit <= int(text) < limit:
        raise WrongType
    return b"%d" % int(text)


def _text(raw: bytes) -> bytes:
    if raw[:1] == b'"':
        return raw[1:-1] if b"\\" not in raw else fragments.text_of(raw).encode()
    if raw[:1] in b"-0123456789":
        return raw
    raise WrongType


def _text_of(raw: bytes) -> str:
    """A string's text or a number's digits; anything else is no key."""
    if raw[:1] not in b'"-0123456789':
        raise WrongType
    return fragments.text_of(raw)


def _guarded(read: Callable[[bytes], bytes]) -> Canonical:
    def guarded(raw: bytes) -> bytes:
        try:
            return read(raw)
        except (ValueError, OverflowError, InvalidOperation):
            raise WrongType from None

    return guarded


def _boolean(raw: bytes) -> bytes:
    text = raw.strip(b'"')
    if text not in (b"1", b"0", b"true", b"false"):
        raise WrongType
    return b"1" if text in (b"1", b"true") else b"0"


def _decimal(scale: int, raw: bytes) -> bytes:
    number = Decimal(_text_of(raw))
    scaled = number.quantize(Decimal(1).scaleb(-scale), context=Context(prec=80))
    if scaled != number:
        raise WrongType
    return format(scaled if scaled else abs(scaled), "f").encode()


def _date(raw: bytes) -> bytes:
    if raw[:1] != b'"':
        return date.fromordinal(_EPOCH_DAY + int(raw) // _DAY_MS).isoformat().encode()
    text = fragments.text_of(raw)
    day, _, time = text.replace("T", " ").partition(" ")
    if time.strip("0:.Z"):
        raise WrongType
    return date.fromisoformat(day).isoformat().encode()


def _timestamp(raw: bytes) -> bytes:
    if raw[:1] != b'"':
        return b"%d" % (int(raw) * 1000)
    return b"%d" % fragments.micros_of(fragments.text_of(raw))


def _binary(raw: bytes) -> bytes:
    if raw[:1] != b'"':
        raise WrongType
    return base64.b64encode(fragments.bytes_of(fragments.text_of(raw)))
