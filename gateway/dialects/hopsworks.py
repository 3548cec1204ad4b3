"""Hopsworks' online feature-vector server: `/{version}/feature_store` and `/{version}/batch_feature_store`.

Bodies are checked by msgspec; entries and passed features go on as the bytes they came as, and the vectors come back as
bytes that are glued into the documented JSON. Rules: the user's documents, and RonDB's server where they are silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated

import grpc
import msgspec
import orjson

from chassis import errors
from gateway import credentials
from gateway.dialect import Dialect, Metadata, Row
from gateway.exchange import Answer, Exchange, json_answer
from gateway.settings import GatewaySettings
from protos.gen.triglot.serving.v1 import serving_service_pb2, serving_service_pb2_grpc, vector_pb2

# Reason, and the dependency if that matters -> Hopsworks' code, its fixed text, and the HTTP status it really sends.
ERRORS = {
    "FEATURE_VIEW_NOT_FOUND": (1, "Feature view does not exist.", 400),
    "FEATURE_STORE_NOT_FOUND": (2, "Feature store does not exist.", 400),
    "FEATURE_GROUP_NOT_FOUND": (3, "Feature group does not exist.", 400),
    "FEATURE_GROUP_DELETED": (3, "Feature group does not exist.", 400),
    "WRONG_FEATURE_TYPE": (10, "Wrong data type.", 400),
    "WRONG_KEY_TYPE": (10, "Wrong data type.", 415),
    "UNKNOWN_PASSED_FEATURE": (11, "Feature does not exist.", 400),
    "INCORRECT_PRIMARY_KEY": (12, "Incorrect primary key.", 400),
    "INCORRECT_PASSED_FEATURE": (13, "Incorrect passed feature.", 400),
    "INCORRECT_FEATURE_VALUE": (16, "Incorrect feature value.", 400),
    "FEATURE_STORE_NOT_SHARED": (17, "Accessing unshared feature store failed", 401),
    "ACTION_NOT_ALLOWED": (17, "Accessing unshared feature store failed", 401),
    "DEPENDENCY_UNAVAILABLE": (14, "Reading from db failed.", 500),
    "DEPENDENCY_UNAVAILABLE postgres": (9, "Fetching metadata from cache failed.", 500),
    "OVERLOADED": (14, "Reading from db failed.", 503),
    "RATE_LIMITED": (20, "Rate limit exceeded.", 429),
    "INTERNAL": (14, "Reading from db failed.", 500),
}
# Reason -> HTTP status and plain text (`{message}` is the error's own), where the original sends no object.
TEXTS = {
    "CREDENTIAL_MISSING": (401, "Unauthorized. Error: the apikey is nil"),
    "CREDENTIAL_INVALID": (401, "Unauthorized. Error: the apikey has an incorrect format, is unknown or has expired"),
    "NO_PRIMARY_KEY_GIVEN": (400, "No primary key is given."),
    "PASSED_FEATURES_LENGTH": (
        400,
        "Length of passed feature does not equal to that of the entries provided in the request.",
    ),
    "MALFORMED_BODY": (400, "Error: {message}"),
    "INVALID_FIELD": (400, "Error:Field validation: {message}"),
    "BODY_TOO_LARGE": (400, "{message}"),
    "BODY_TOO_SLOW": (408, "{message}"),
    "TOO_MANY_ENTRIES": (400, "{message}"),
    "DEADLINE_EXCEEDED": (503, "The server did not answer in time"),
    "OPERATION_NOT_FOUND": (404, "Not Found"),
    "METHOD_NOT_ALLOWED": (405, "Method Not Allowed"),
}
PLAIN = "text/plain; charset=utf-8"
STATUSES = {
    vector_pb2.VECTOR_STATUS_COMPLETE: b'"COMPLETE"',
    vector_pb2.VECTOR_STATUS_MISSING: b'"MISSING"',
    vector_pb2.VECTOR_STATUS_ERROR: b'"ERROR"',
}


class _MetadataOptions(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    feature_name: bool | None = None
    feature_type: bool | None = None


class _Options(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    validate_passed_features: bool | None = None
    include_detailed_status: bool | None = None


class _Body(msgspec.Struct, rename="camel"):
    feature_store_name: Annotated[str, msgspec.Meta(min_length=1)]
    feature_view_name: Annotated[str, msgspec.Meta(min_length=1)]
    feature_view_version: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    entries: msgspec.Raw
    passed_features: msgspec.Raw = msgspec.Raw(b"null")
    metadata_options: _MetadataOptions | None = None
    options: _Options | None = None


_decoder = msgspec.json.Decoder(_Body)
_NO_METADATA, _NO_OPTIONS = _MetadataOptions(), _Options()


def dialect(channel: grpc.aio.Channel, settings: GatewaySettings) -> Dialect:
    """The dialect on a channel to serving."""
    serving = serving_service_pb2_grpc.ServingServiceStub(channel)
    prefix = f"/{settings.hopsworks_api_version}"
    validates = settings.hopsworks_validate_passed_features

    def single(exchange: Exchange) -> serving_service_pb2.RenderFeatureVectorsRequest:
        return _message(exchange, batch=False, validates=validates)

    def batch(exchange: Exchange) -> serving_service_pb2.RenderFeatureVectorsRequest:
        return _message(exchange, batch=True, validates=validates)

    render = serving.RenderFeatureVectors
    return Dialect(
        name="hopsworks",
        rows=(
            Row(("POST",), f"{prefix}/feature_store", "feature_store", render, single, _vector),
            Row(("POST",), f"{prefix}/batch_feature_store", "batch_feature_store", render, batch, _vectors),
            Row(("GET",), f"{prefix}/ping", "ping", None, _empty, lambda exchange, _: Answer(200)),
            Row(("GET",), f"{prefix}/health", "health", serving.Ping, _nothing, _health),
        ),
        credential=_credential,
        render_error=_error,
        owns=lambda path: path.startswith(f"{prefix}/"),
    )


def _credential(exchange: Exchange) -> Metadata:
    key = credentials.sendable(exchange.headers.get("x-api-key", ""))
    return (("x-api-key", key),) if key else ()


def _empty(exchange: Exchange) -> None:
    if exchange.body:
        raise errors.InvalidArgument("Ping Request should be empty", reason="MALFORMED_BODY")


def _nothing(exchange: Exchange) -> serving_service_pb2.PingRequest:
    return serving_service_pb2.PingRequest()


def _health(exchange: Exchange, reply: object) -> Answer:
    """0: rows can be read. Otherwise the number is above 0 (see `_error`), and the HTTP status is still 200."""
    return Answer(200, b"0", PLAIN)


def _message(exchange: Exchange, *, batch: bool, validates: bool) -> serving_service_pb2.RenderFeatureVectorsRequest:
    try:
        body = _decoder.decode(exchange.body)
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument(str(error), reason="INVALID_FIELD") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise exchange.malformed(str(error)) from None
    options, metadata = body.options or _NO_OPTIONS, body.metadata_options or _NO_METADATA
    entries, passed = bytes(body.entries), bytes(body.passed_features)
    opening = b"[" if batch else b"{"
    if not entries.startswith(opening):
        raise _wrong_form("entries", batch=batch)
    if passed != b"null" and not passed.startswith(opening):
        raise _wrong_form("passedFeatures", batch=batch)
    validate = options.validate_passed_features
    message = serving_service_pb2.RenderFeatureVectorsRequest()
    message.CopyFrom(
        _begun(
            batch,
            validates if validate is None else validate,
            bool(options.include_detailed_status),
            bool(metadata.feature_name),
            bool(metadata.feature_type),
        )
    )
    message.feature_store = body.feature_store_name
    message.feature_view = body.feature_view_name
    message.version = body.feature_view_version
    message.entries = entries
    if passed != b"null":
        message.passed_features = passed
    return message


def _wrong_form(name: str, *, batch: bool) -> errors.InvalidArgument:
    kind = "an array of objects" if batch else "an object"
    return errors.InvalidArgument(f"`{name}` must be {kind}", reason="INVALID_FIELD", field=name)


@cache
def _begun(
    batch: bool, validate: bool, detailed: bool, names: bool, types: bool
) -> serving_service_pb2.RenderFeatureVectorsRequest:
    """What requests of one kind have in common. To copy it takes half as long as to make it."""
    options = vector_pb2.VectorOptions(
        validate_passed_features=validate, include_detailed_status=detailed, include_names=names, include_types=types
    )
    return serving_service_pb2.RenderFeatureVectorsRequest(batch=batch, join_vectors=True, options=options)


def _vector(exchange: Exchange, reply: serving_service_pb2.RenderFeatureVectorsResponse) -> Answer:
    parts = [
        b'{"features":', _joined(reply),
        b',"metadata":', _metadata(reply.metadata),
        b',"status":', STATUSES[reply.statuses[0]],
    ]  # fmt: skip
    if reply.details:
        parts += (b',"detailedStatus":', _details(reply.details[0]))
    parts.append(b"}")
    return Answer(200, b"".join(parts))


def _vectors(exchange: Exchange, reply: serving_service_pb2.RenderFeatureVectorsResponse) -> Answer:
    parts = [
        b'{"features":[', _joined(reply),
        b'],"metadata":', _metadata(reply.metadata),
        b',"status":[', b",".join(map(STATUSES.__getitem__, reply.statuses)),
    ]  # fmt: skip
    if reply.details:
        parts += (b'],"detailedStatus":[', b",".join([_details(each) for each in reply.details]))
    parts.append(b"]}")
    return Answer(200, b"".join(parts))


def _joined(reply: serving_service_pb2.RenderFeatureVectorsResponse) -> bytes:
    """The vectors, separated by commas. A server that is older than the gateway sends them one by one."""
    return reply.joined or b",".join(reply.vectors)


def _metadata(metadata: Sequence[vector_pb2.FeatureMetadata]) -> bytes:
    """What was not asked for is null."""
    if not metadata:
        return b"null"
    return orjson.dumps(
        [{"featureName": each.feature_name or None, "featureType": each.feature_type or None} for each in metadata]
    )


def _details(statuses: vector_pb2.GroupStatuses) -> bytes:
    items = [
        b'{"featureGroupId":%d,"httpStatus":%d}' % (one.feature_group_id, one.http_status) for one in statuses.groups
    ]
    return b"[" + b",".join(items) + b"]"


def _error(error: errors.TriglotError, exchange: Exchange) -> Answer:
    if exchange.path.endswith("/health") and error.reason in ("DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return Answer(200, b"1", PLAIN)
    if error.reason in TEXTS:
        status, text = TEXTS[error.reason]
        return Answer(status, text.format(message=error.message).encode(), PLAIN)
    of_dependency = f"{error.reason} {error.metadata.get('dependency')}"
    code, reason, status = ERRORS.get(of_dependency) or ERRORS.get(error.reason) or ERRORS["INTERNAL"]
    return json_answer({"code": code, "message": error.message, "reason": reason}, status)
