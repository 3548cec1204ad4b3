"""What requests have in common: ids, names, pages, enumerations. Each check raises InvalidArgument, naming the field.

Fields are named as PAI's documents name them, because that is what a caller sees whichever protocol it speaks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from chassis import calls, errors
from chassis.postgres import Database
from services.management.rows import Row

MAX_PAGE_SIZE = 100
MAX_IDS = 100
MAX_NAME = 128
MAX_JSON = 64 * 1024
MAX_JSON_DEPTH = 32
_ID = re.compile(r"[0-9]{1,18}")
_SORTS = ("GmtCreateTime", "GmtModifiedTime")


def invalid(field: str, why: str) -> errors.InvalidArgument:
    """The error for a field of the request."""
    return errors.InvalidArgument(f"{field} {why}", field=field)


def not_found(resource: str, identifier: object) -> errors.NotFound:
    """The error for an id that nothing has."""
    return errors.NotFound(f"{resource} {identifier} does not exist", resource=resource, id=identifier)


def check_instance(request: Any, instance_id: str) -> None:
    """Raises NotFound unless the request names this instance."""
    if required("InstanceId", request.instance_id) != instance_id:
        raise not_found("Instance", request.instance_id)


def number(field: str, text: str) -> int:
    """An id. It must be there."""
    if not _ID.fullmatch(required(field, text)):
        raise invalid(field, "must be a decimal number")
    return int(text)


def number_or_none(field: str, text: str) -> int | None:
    """An id that may be left out."""
    return number(field, text) if text else None


def numbers(field: str, texts: Sequence[str]) -> list[int]:
    """A filter by ids: at most 100 of them."""
    if len(texts) > MAX_IDS:
        raise invalid(field, f"takes at most {MAX_IDS} ids")
    return [number(field, text) for text in texts]


def required(field: str, text: str) -> str:
    """A text that must not be empty."""
    if not text:
        raise invalid(field, "is required")
    return text


def name(field: str, text: str) -> str:
    """A name: 1 to 128 characters that can be printed."""
    if len(required(field, text)) > MAX_NAME or not text.isprintable() or text != text.strip():
        raise invalid(field, f"must be 1 to {MAX_NAME} printable characters without blanks around them")
    return text


def one_of(field: str, text: str, allowed: Collection[str]) -> str:
    """A value of an enumeration, in its own spelling whatever the case it was given in."""
    found = {each.lower(): each for each in allowed}.get(required(field, text).lower())
    if found is None:
        raise invalid(field, f"must be one of {', '.join(allowed)}")
    return found


def json_object(field: str, text: str) -> dict[str, Any]:
    """A JSON object as text; an empty text is an empty object."""
    try:
        value = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError as error:
        raise invalid(field, f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid(field, "must be a JSON object")
    if len(text) > MAX_JSON or _depth(value) > MAX_JSON_DEPTH:
        raise invalid(field, f"takes at most {MAX_JSON} characters and {MAX_JSON_DEPTH} levels")
    return value


def _depth(value: object) -> int:
    """How deep lists and objects are nested; stops counting at what is not allowed anyway."""
    level, depth = [value], 0
    while level and depth <= MAX_JSON_DEPTH:
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [child for children in inner for child in children]
        depth += 1
    return depth


def not_negative(field: str, value: int) -> int:
    """A count or a length of time."""
    if value < 0:
        raise invalid(field, "must not be negative")
    return value


@dataclass(frozen=True)
class Page:
    """Which part of a list, and how it is sorted. The fields are what the list queries take last, in this order."""

    sort: str
    direction: int  # 1 ascending, -1 descending
    limit: int
    offset: int

    @property
    def arguments(self) -> tuple[str, int, int, int]:
        """The last four arguments of a list query."""
        return self.sort, self.direction, self.limit, self.offset


def page_of(request: Any, sorts: Collection[str] = _SORTS) -> Page:
    """The page that a list request asks for: page 1 of 10, newest first, unless it says otherwise."""
    page_number = request.page_number if request.HasField("page_number") else 1
    page_size = request.page_size if request.HasField("page_size") else 10
    if page_number < 1:
        raise invalid("PageNumber", "must be 1 or more")
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise invalid("PageSize", f"must be 1 to {MAX_PAGE_SIZE}")
    sort = one_of("SortBy", getattr(request, "sort_by", "") or next(iter(sorts)), sorts)
    order = one_of("Order", getattr(request, "order", "") or "DESC", ("ASC", "DESC"))
    return Page(sort, 1 if order == "ASC" else -1, page_size, (page_number - 1) * page_size)


async def fetch_page(database: Database, query: str, *arguments: Any) -> tuple[int, list[Row]]:
    """Run a list query: the count of all pages, and the rows of this one. One row comes even if all is empty."""
    rows = await database.fetch(query, *arguments)
    return rows[0]["total"], [row for row in rows if row["id"] is not None]


def visible_stores() -> list[str] | None:
    """The feature stores whose objects the caller's lists may show; None: all."""
    principal = calls.principal()
    if principal.administrator or "*" in principal.feature_stores:
        return None
    return sorted(principal.feature_stores)


def distinct(field: str, values: Iterable[object]) -> None:
    """Raises unless no value comes twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise invalid(field, f"names {value!r} twice")
        seen.add(value)


def text_id(value: int | None) -> str:
    """An id as it is shown; empty for none."""
    return "" if value is None else str(value)
