"""Errors in PAI's words: {"RequestId", "Code", "Message"}. One table from reasons to HTTP status and code."""

from __future__ import annotations

import grpc

from chassis import errors
from gateway.exchange import Answer, Exchange, json_answer

_FORBIDDEN = (403, "UnauthorizedOperation")
_INVALID = (400, "InvalidParameter")
_MISSING = (404, "ResourceNotFound")
_BUSY = (503, "ServiceUnavailable")

_BY_REASON = {
    "CREDENTIAL_MISSING": _FORBIDDEN,
    "CREDENTIAL_INVALID": _FORBIDDEN,
    "SIGNATURE_INCOMPLETE": (400, "IncompleteSignature"),
    "SIGNATURE_MISMATCH": (400, "SignatureDoesNotMatch"),
    "SIGNATURE_EXPIRED": (400, "InvalidTimeStamp.Expired"),
    "SIGNATURE_NONCE_USED": (400, "SignatureNonceUsed"),
    "SIGNATURE_TYPE_UNSUPPORTED": (400, "SignatureTypeNotSupported"),
    "ACCESS_KEY_NOT_FOUND": (404, "InvalidAccessKeyId.NotFound"),
    "BODY_TOO_SLOW": (408, "RequestTimeout"),
    "OPERATION_NOT_FOUND": (404, "InvalidApi.NotFound"),
    "METHOD_NOT_ALLOWED": (405, "UnsupportedHTTPMethod"),
    "UNIMPLEMENTED": (404, "InvalidApi.NotFound"),
    "DEPENDENCY_EXISTS": (400, "DependencyExists"),
}
# What another reason is, by its kind.
_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: _INVALID,
    grpc.StatusCode.FAILED_PRECONDITION: _INVALID,
    grpc.StatusCode.UNAUTHENTICATED: _FORBIDDEN,
    grpc.StatusCode.PERMISSION_DENIED: _FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: _MISSING,
    grpc.StatusCode.ABORTED: _BUSY,
    grpc.StatusCode.UNAVAILABLE: _BUSY,
    grpc.StatusCode.DEADLINE_EXCEEDED: _BUSY,
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "Throttling"),
}
_DEFECT = (500, "InternalError")
_RETRY_AFTER = "retry_after_ms"


def render(error: errors.TriglotError, exchange: Exchange) -> Answer:
    """The answer that says what went wrong."""
    if error.code is grpc.StatusCode.ALREADY_EXISTS:
        status, code = 400, f"{error.metadata.get('resource', 'Resource')}AlreadyExists"
    else:
        status, code = _BY_REASON.get(error.reason) or _BY_CODE.get(error.code, _DEFECT)
    headers = {"x-acs-request-id": exchange.request_id}
    if _RETRY_AFTER in error.metadata:
        headers["x-acs-retry-after"] = error.metadata[_RETRY_AFTER]
    content = {"RequestId": exchange.request_id, "Code": code, "Message": error.message}
    return json_answer(content, status, headers)
