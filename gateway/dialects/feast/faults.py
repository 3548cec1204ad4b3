"""Who calls, and what a caller who was refused reads."""

from __future__ import annotations

from collections.abc import Sequence

from chassis import errors
from gateway import credentials
from gateway.dialect import Metadata
from gateway.exchange import Answer, Exchange, json_answer


def credential(exchange: Exchange) -> Metadata:
    """The Authorization header, handed on for the registry to judge."""
    shown = credentials.sendable(exchange.headers.get("authorization", ""))
    return (("authorization", shown),) if shown else ()


_LABELS = {
    "PROJECT_NOT_FOUND": "Project",
    "ENTITY_NOT_FOUND": "Entity",
    "DATA_SOURCE_NOT_FOUND": "Data source",
    "FEATURE_VIEW_NOT_FOUND": "Feature view",
    "FEATURE_SERVICE_NOT_FOUND": "Feature service",
    "SAVED_DATASET_NOT_FOUND": "Saved dataset",
    "VALIDATION_REFERENCE_NOT_FOUND": "Validation reference",
    "PERMISSION_NOT_FOUND": "Permission",
}

# Status and error type; the first row that fits.
_SHAPES: Sequence[tuple[type[errors.TriglotError], int, str]] = (
    (errors.InvalidArgument, 422, "ValueError"),
    (errors.Unauthenticated, 401, "HTTPException"),
    (errors.PermissionDenied, 403, "FeastPermissionError"),
    (errors.NotFound, 404, "FeastObjectNotFoundException"),
    (errors.AlreadyExists, 409, "HTTPException"),
    (errors.FailedPrecondition, 409, "HTTPException"),
    (errors.Aborted, 409, "HTTPException"),
    (errors.ResourceExhausted, 429, "HTTPException"),
    (errors.Unimplemented, 501, "HTTPException"),
    (errors.Unavailable, 503, "HTTPException"),
    (errors.DeadlineExceeded, 504, "HTTPException"),
    (errors.TriglotError, 500, "InternalServerError"),
)
_ABOUT_THE_BODY = {"BODY_TOO_LARGE": 413, "BODY_TOO_SLOW": 408}
# What the gateway finds wrong says so in its metadata; what the registry finds wrong is a ValueError.
_FOUND_HERE = {"RequestValidationError": 422, "HTTPException": 400}
# What the real server's framework answers before its own handlers run.
_BARE = {
    "OPERATION_NOT_FOUND": (404, "Not Found"),
    "METHOD_NOT_ALLOWED": (405, "Method Not Allowed"),
}


def render_error(error: errors.TriglotError, exchange: Exchange) -> Answer:
    """`{status_code, detail, error_type}`; a path or method that does not exist only has `detail`."""
    if error.reason in _BARE:
        status, detail = _BARE[error.reason]
        return json_answer({"detail": detail}, status)
    status, error_type = next((row[1], row[2]) for row in _SHAPES if isinstance(error, row[0]))
    if error.reason in _ABOUT_THE_BODY:
        status, error_type = _ABOUT_THE_BODY[error.reason], "HTTPException"
    elif error.metadata.get("error_type") in _FOUND_HERE:
        error_type = error.metadata["error_type"]
        status = _FOUND_HERE[error_type]
    content = {"status_code": status, "detail": _detail(error), "error_type": error_type}
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    return json_answer(content, status, headers)


def _detail(error: errors.TriglotError) -> str | Sequence[object]:
    if "missing" in error.metadata:
        place = [error.metadata["missing"], error.metadata["field"]]
        return [{"type": "missing", "loc": place, "msg": "Field required"}]
    if isinstance(error, errors.Unauthenticated):
        return "Invalid or expired access token"
    label, name = _LABELS.get(error.reason), error.metadata.get("name", "")
    if label is None:
        return error.message
    if error.reason == "PROJECT_NOT_FOUND":
        return f"{label} '{name}' does not exist"
    return f"{label} '{name}' does not exist in project '{error.metadata.get('project', '')}'"
