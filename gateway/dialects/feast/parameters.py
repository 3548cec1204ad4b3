"""Query parameters of Feast's routes: each knows how it is read and how OpenAPI shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from chassis import errors
from gateway.dialects.feast.schemas import FLAG, MOMENT, TEXT, Schema, many, one_of
from protos.gen.triglot.registry.v1 import object_pb2

MAX_LIMIT = 100
DEFAULT_LIMIT = 50
MAX_NUMBER = 2**31 - 1
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y"), True),
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), False),
}

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Parameter(Generic[T]):
    """A parameter. `read` gets all the values that were given, perhaps none; it raises InvalidArgument."""

    name: str
    about: str
    schema: Schema
    read: Callable[[Sequence[str]], T]
    required: bool = False


def invalid(name: str, what: str) -> errors.InvalidArgument:
    """A parameter that is wrong: 422, in the words of a validator."""
    return errors.InvalidArgument(f"query parameter '{name}': {what}", field=name, error_type="RequestValidationError")


def invalid_body(what: str) -> errors.InvalidArgument:
    """A body that is wrong, in the same way."""
    return errors.InvalidArgument(f"body: {what}", reason="MALFORMED_BODY", error_type="RequestValidationError")


def bad_request(text: str, name: str) -> errors.InvalidArgument:
    """What Feast answers with 400 rather than 422."""
    return errors.InvalidArgument(text, field=name, error_type="HTTPException")


def _refused(name: str, given: str, what: str, *, plain: bool) -> errors.InvalidArgument:
    if plain:
        return bad_request(f"Invalid {name} parameter: '{given}'. {what[:1].upper()}{what[1:]}", name)
    return invalid(name, what)


def text(name: str, about: str) -> Parameter[str]:
    """Any text; the last one counts; empty if it is not there."""
    return Parameter(name, about, TEXT, lambda values: values[-1] if values else "")


def required(name: str, about: str) -> Parameter[str]:
    """A text that must be there and not empty."""

    def read(values: Sequence[str]) -> str:
        if not values or not values[-1]:
            raise invalid(name, "Field required")
        return values[-1]

    return Parameter(name, about, {**TEXT, "minLength": 1}, read, required=True)


def number(name: str, about: str, most: int = MAX_NUMBER, default: int = 0, *, plain: bool = False) -> Parameter[int]:
    """A whole number from 1 to `most`. `plain`: anything else is 400, not 422."""

    def read(values: Sequence[str]) -> int:
        if not values:
            return default
        given = values[-1]
        value = int(given) if given.isascii() and given.isdigit() and len(given) <= 10 else 0
        if value < 1:
            raise _refused(name, given, "must be a whole number from 1", plain=plain)
        if value > most:
            raise _refused(name, given, f"must be less than or equal to {most}", plain=plain)
        return value

    shown: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": most}
    return Parameter(name, about, shown | ({"default": default} if default else {}), read)


def flag(name: str, about: str, *, default: bool = False) -> Parameter[bool]:
    """True or false, in any of the spellings that the real server takes."""

    def read(values: Sequence[str]) -> bool:
        if not values:
            return default
        if values[-1].lower() not in _BOOLEANS:
            raise invalid(name, "must be true or false")
        return _BOOLEANS[values[-1].lower()]

    return Parameter(name, about, {**FLAG, "default": default}, read)


def choice(name: str, about: str, options: Sequence[str], default: str, *, plain: bool = False) -> Parameter[str]:
    """One of a few words. `plain`: anything else is 400, not 422."""

    def read(values: Sequence[str]) -> str:
        if values and values[-1] not in options:
            raise _refused(name, values[-1], f"valid options are: {list(options)}", plain=plain)
        return values[-1] if values else default

    return Parameter(name, about, {**one_of(options), "default": default}, read)


def _tags(values: Sequence[str]) -> Mapping[str, str]:
    found = {}
    for each in values:
        places = [place for place in (each.find(":"), each.find("=")) if place > 0]
        if not places:
            raise invalid("tags", "must be key:value or key=value")
        found[each[: min(places)].strip()] = each[min(places) + 1 :].strip()
    return found


def _moment(values: Sequence[str]) -> datetime | None:
    if not values or not values[-1]:
        return None
    try:
        moment = datetime.fromisoformat(values[-1])
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        text = "Invalid updated_since parameter: it must be an ISO 8601 time"
        raise bad_request(text, "updated_since") from None


PROJECT = required("project", "Name of the project.")
ANY_PROJECT = text("project", "Name of a project. Without it: all projects.")
ALLOW_CACHE = flag("allow_cache", "Changes nothing: there is no cache that could be old.", default=True)
INCLUDE_RELATIONSHIPS = flag("include_relationships", "Also answer with relationships, direct and indirect.")
TAGS = Parameter(
    "tags", "Only what has this tag, `key:value` or `key=value`. May be given several times.", many(TEXT), _tags
)
PAGE = number("page", "Number of the page, from 1. Without page and limit: everything.")
LIMIT = number("limit", f"Objects on a page; {DEFAULT_LIMIT} if only the page is given.", MAX_LIMIT)
PAGE_OF_ALL = number("page", "Number of the page, from 1.", default=1)
LIMIT_OF_ALL = number("limit", "Objects on a page.", MAX_LIMIT, DEFAULT_LIMIT)
SORT_BY = text(
    "sort_by",
    "name, project, created_timestamp, last_updated_timestamp, description, owner, type or feature_view, in snake_case"
    " or camelCase, also with `spec.` or `meta.` in front. Anything else keeps the usual order.",
)
SORT_ORDER = choice("sort_order", "Smallest or largest first.", ("asc", "desc"), "asc")
UPDATED_SINCE = Parameter("updated_since", "Only what changed at this time or later.", MOMENT, _moment)

PAGING = (PAGE, LIMIT, SORT_BY, SORT_ORDER)
PAGING_OF_ALL = (PAGE_OF_ALL, LIMIT_OF_ALL, SORT_BY, SORT_ORDER)


def pagination(page: int, limit: int, total: int) -> dict[str, Any]:
    """All the keys that the document or the real server has, always."""
    pages = -(-total // limit) if limit else 0
    return {
        "page": page,
        "limit": limit,
        "total": total,
        "totalCount": total,
        "totalPages": pages,
        "hasNext": page < pages,
        "hasPrevious": page > 1 and total > 0,
    }


def relation(relation: object_pb2.Relationship) -> dict[str, Any]:
    """A relationship as JSON has it."""
    ends = {"source": relation.source, "target": relation.target}
    return {end: {"type": reference.type, "name": reference.name} for end, reference in ends.items()}
