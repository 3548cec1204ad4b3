"""One HTTP exchange as the rows of a dialect see it: what came in, and what goes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson

from chassis import errors

JSON = "application/json"
# Where the scope of our own server has a function that gives the body if it has arrived whole and is no larger than its
# argument. It spares most requests a deadline and a wait. Other servers know of no such thing.
WHOLE_BODY = "triglot.whole_body"


@dataclass(slots=True)
class Exchange:
    """A request whose body has arrived whole."""

    method: str
    path: str
    raw_path: bytes  # as sent, percent-encoded, without the query
    query_string: bytes
    headers: Mapping[str, str]  # lower-case names
    path_params: Mapping[str, str]
    body: bytes
    request_id: str
    _query: dict[str, list[str]] | None = field(default=None, repr=False)

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's parameters in order, each with all its values, decoded."""
        if self._query is None:
            found: dict[str, list[str]] = {}
            for name, value in parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True):
                found.setdefault(name, []).append(value)
            self._query = found
        return self._query

    def parameter(self, name: str) -> str | None:
        """The last value of a query parameter, or None."""
        values = self.query.get(name)
        return values[-1] if values else None

    def json(self) -> Any:
        """The body as JSON. Raises InvalidArgument, reason MALFORMED_BODY, with the place of the first fault."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise self.malformed(f"the body is not JSON: {error}") from None

    def malformed(self, fault: str) -> errors.InvalidArgument:
        """What is wrong with the body, reason MALFORMED_BODY."""
        encoding = self.headers.get("content-encoding", "identity")
        if encoding != "identity":
            fault = f"the body is compressed ({encoding}): only plain JSON is taken"
        return errors.InvalidArgument(fault, reason="MALFORMED_BODY")


@dataclass(slots=True)
class Answer:
    """A response. Its body is whole, or begins with what `rest` yields; whoever sends it closes `rest`."""

    status: int = 200
    body: bytes = b""
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    rest: AsyncGenerator[bytes] | None = None


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of plain Python values as JSON."""
    return Answer(status, orjson.dumps(content), JSON, headers or {})
