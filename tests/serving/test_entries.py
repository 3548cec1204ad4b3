"""Entries that are cut out of their text together are what they are when each is decoded."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chassis import errors
from services.serving.entries import Column, parsed

_values = st.sampled_from(
    [
        *(0, 1, 36, 2**70, -1, 1.5, True, None),
        *("", "a", "é", "1", 'a"b', "a\\b", "a\nb", "},", '{"id":', ",", ",,", "\x7f"),
        *([1], ["a"], ["x", "y"], {"id": 1}),
    ]
)
_more = st.sampled_from([{}, {"id": 1, "more": 2}, {"id": "a", "b": 1}, {"b": "a"}])
_entries = st.lists(st.dictionaries(st.just("id"), _values) | _more, max_size=5)
_alike = st.sampled_from(
    [[1, 36, 2**70], ["a", "é", "1", ""], [1, 0], ["a", "},"], ["a", ","], [",", ",", 5, ["x", "y"], None]]
).flatmap(lambda values: st.lists(st.sampled_from(values).map(lambda value: {"id": value}), min_size=1, max_size=5))
_separators = st.sampled_from([(", ", ": "), (",", ":"), (" , ", ": "), (",", ": "), (",\n", ":")])


def seen(entries: Any) -> list[dict[str, bytes]]:
    return [{name: bytes(value) for name, value in entry.items()} for entry in entries]


def one_by_one(text: bytes) -> list[dict[str, bytes]]:
    text.decode()
    return seen(msgspec.json.decode(text, type=list[dict[str, msgspec.Raw]]))


def compare(text: bytes) -> None:
    try:
        expected = one_by_one(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        with pytest.raises(errors.InvalidArgument):
            parsed(text, b"", ("id",), batch=True)
    else:
        assert seen(parsed(text, b"", ("id",), batch=True)[0]) == expected


@settings(max_examples=500, deadline=None, derandomize=True)
@given(entries=_entries | _alike, separators=_separators, ascii_only=st.booleans())
def test_they_are_the_same(entries: list[Any], separators: tuple[str, str], *, ascii_only: bool) -> None:
    compare(json.dumps(entries, separators=separators, ensure_ascii=ascii_only).encode())


@settings(max_examples=1_000, deadline=None, derandomize=True)
@given(
    entries=_alike, at=st.integers(0, 60), cut=st.integers(0, 9), put=st.sampled_from([*'0"\\,}{]: e', "\x00", "\n"])
)
@example(entries=[{"id": 1}, {"id": 2}], at=8, cut=1, put="")
@example(entries=[{"id": 1}, {"id": 2}], at=8, cut=0, put="0")
def test_a_fault_anywhere_is_found(entries: list[Any], at: int, cut: int, put: str) -> None:
    text = json.dumps(entries)
    compare((text[:at] + put + text[at + cut :]).encode())


@pytest.mark.parametrize(
    "text",
    [
        # Commas in strings make up for quotes that are not there.
        '[{"id":","},{},{"id":"a"}]',
        '[{"id":"a","b":1},{"id":5},{"id":","}]',
        '[{"id":","},{"id":["x","y"]},{"id":null},{"id":","}]',
        '[{"id":"a","id":","},{"id":","}]',
        '[{"id":"a","b"},{"id":"x},{"id":y"}]',
        '[{"id":"},{"id":"a"b"}]',
        '[{"id":"},{"id":"}]',
        '[{"id":"}]',
        '[{"id":""},{"id":"},{"id":"}]',
        '[{"id":"a\0"},{"id":"\0b"}]',
        '[{"id":"a"\0"b"}]',
        '[{"id":}]',
        '[{"id":1},{"id":}]',
        '[{"id":12 }]',
    ],
)
def test_what_looks_like_plain_values(text: str) -> None:
    compare(text.encode())
    compare(text.replace('":', '": ').replace("},", "}, ").encode())


def test_bytes_that_are_no_text() -> None:
    compare(b'[{"id": "\xff"}]')


@pytest.mark.parametrize(
    ("text", "together"),
    [
        ('[{"id": 1}, {"id": 23}]', True),
        ('[{"id":"a"},{"id":""}]', True),
        ('[{"id": 1}, {"id": "a"}]', False),
        ('[{"id": 1}, {"id": 0}]', False),
        ('[{"id":1}, {"id":2}]', False),
        ('[{"ID": 1}]', False),
    ],
)
def test_which_are_cut_out_together(text: str, together: bool) -> None:
    entries, passed = parsed(text.encode(), b"", ("id",), batch=True)
    assert (isinstance(entries, Column), passed) == (together, [])
    assert seen(entries[:1]) == one_by_one(text.encode())[:1]


def test_columns_are_for_views_that_are_asked_by_one_name() -> None:
    text = b'[{"id": 1}]'
    assert not isinstance(parsed(text, b"", ("id", "more"), batch=True)[0], Column)
    assert not isinstance(parsed(text, b"", (), batch=True)[0], Column)
