"""What Feast's routes share: reading query parameters, paging, relationships as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from chassis import errors
from gateway.exchange import Exchange
from protos.gen.triglot.registry.v1 import object_pb2

MAX_LIMIT = 100
DEFAULT_LIMIT = 50
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y"), True),
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), False),
}


class BadRequest(errors.InvalidArgument):
    """What Feast answers with 400 rather than 422."""


class MissingQuery(errors.InvalidArgument):
    """What Feast answers with a list that names the missing parameter."""


def asked_page(exchange: Exchange) -> tuple[int, int] | None:
    """Page and limit; either alone brings the other one's default. None if neither was asked for."""
    page, limit = whole_number(exchange, "page"), whole_number(exchange, "limit", MAX_LIMIT)
    return (page or 1, limit or DEFAULT_LIMIT) if page or limit else None


def required(exchange: Exchange, name: str) -> str:
    """A parameter that must be there and not empty."""
    value = exchange.parameter(name)
    if not value:
        raise errors.InvalidArgument(f"query parameter '{name}': Field required", field=name)
    return value


def whole_number(exchange: Exchange, name: str, most: int = 2**31 - 1) -> int:
    """A parameter from 1 to `most`; 0 if it is not there."""
    text = exchange.parameter(name)
    if text is None:
        return 0
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
    if not 1 <= value <= most:
        raise errors.InvalidArgument(f"query parameter '{name}': must be a whole number from 1 to {most}", field=name)
    return value


def flag(exchange: Exchange, name: str) -> bool:
    """A parameter that is true or false; false if it is not there."""
    text = exchange.parameter(name)
    if text is None:
        return False
    if text.lower() not in _BOOLEANS:
        raise errors.InvalidArgument(f"query parameter '{name}': must be true or false", field=name)
    return _BOOLEANS[text.lower()]


def descending(exchange: Exchange) -> bool:
    """Whether `sort_order` asks for the largest first."""
    text = exchange.parameter("sort_order")
    if text not in (None, "asc", "desc"):
        raise errors.InvalidArgument("query parameter 'sort_order': must be asc or desc", field="sort_order")
    return text == "desc"


def tags(exchange: Exchange) -> Mapping[str, str]:
    """`tags=key:value` or `tags=key=value`, any number of times; the first mark separates."""
    found = {}
    for text in exchange.query.get("tags", ()):
        places = [place for place in (text.find(":"), text.find("=")) if place > 0]
        if not places:
            raise errors.InvalidArgument("query parameter 'tags': must be key:value or key=value", field="tags")
        found[text[: min(places)].strip()] = text[min(places) + 1 :].strip()
    return found


def moment(text: str) -> datetime:
    """An ISO 8601 time, UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadRequest("Invalid updated_since parameter: it must be an ISO 8601 time") from None


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
