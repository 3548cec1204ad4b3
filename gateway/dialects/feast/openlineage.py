"""OpenLineage, which Feast's web UI asks for wherever it runs: no events are taken, so nothing is known.

The shapes are those of a Feast server that takes events and was sent none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.dialects.feast import parameters
from gateway.dialects.feast.engines import who_calls
from gateway.dialects.feast.parameters import Parameter
from gateway.dialects.feast.routes import Route
from gateway.dialects.feast.schemas import NUMBER, Schema, record
from gateway.exchange import json_answer

_NAMESPACE = parameters.text("namespace", "Only what is in this namespace.")
_JOB_NAMESPACE = parameters.text("job_namespace", "Only runs of jobs in this namespace.")
_JOB_NAME = parameters.text("job_name", "Only those of this job.")
_LIMIT = parameters.number("limit", "How many.")
_OFFSET = parameters.number("offset", "How many to skip.")
_NOTHING: Schema = {"type": "array", "maxItems": 0}
# What is listed: its parameters, and the answer's lists and counts.
_LISTS: Mapping[str, tuple[Sequence[Parameter[Any]], Mapping[str, Any]]] = {
    "namespaces": ((), {"namespaces": []}),
    "graph": ((_NAMESPACE, _LIMIT, _OFFSET), {"nodes": [], "edges": [], "symlinks": [], "total_nodes": 0}),
    "events": ((_NAMESPACE, _JOB_NAME, _LIMIT, _OFFSET), {"events": [], "total": 0}),
    "jobs": ((), {"jobs": []}),
    "datasets": ((), {"datasets": []}),
    "runs": ((_JOB_NAMESPACE, _JOB_NAME, _LIMIT, _OFFSET), {"runs": [], "total": 0}),
}


def routes(feast: Any) -> Sequence[Route]:
    """The lists. They are answered here; the RPC is there to look at who calls."""
    return [_route(feast, what, *described) for what, described in _LISTS.items()]


def _route(feast: Any, what: str, taken: Sequence[Parameter[Any]], answer: Mapping[str, Any]) -> Route:
    return Route(
        "GET",
        f"/lineage/openlineage/{what}",
        f"openlineage.{what}",
        "What OpenLineage events told: none are taken.",
        feast.ListProjects,
        who_calls,
        lambda asked, _: json_answer(answer),
        shows=record({key: NUMBER if value == 0 else _NOTHING for key, value in answer.items()}),
        parameters=taken,
    )
