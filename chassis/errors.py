"""What can go wrong, said once. Each error has a gRPC code, a stable reason and metadata.

    TriglotError
    ├── InvalidArgument      INVALID_ARGUMENT     the request is wrong, whatever the state
    ├── Unauthenticated      UNAUTHENTICATED      no credential, or not a good one
    ├── PermissionDenied     PERMISSION_DENIED    known, and not allowed
    ├── NotFound             NOT_FOUND
    ├── AlreadyExists        ALREADY_EXISTS       the name is taken, or the definition differs
    ├── FailedPrecondition   FAILED_PRECONDITION  right in another state
    ├── Aborted              ABORTED              lost a race; try again
    ├── ResourceExhausted    RESOURCE_EXHAUSTED   a limit of the caller's
    ├── Unavailable          UNAVAILABLE          a dependency or the server itself; try again later
    ├── DeadlineExceeded     DEADLINE_EXCEEDED
    ├── Unimplemented        UNIMPLEMENTED
    └── Internal             INTERNAL             a defect; its text stays in the log

Reasons are the names of `triglot.errors.v1.Reason` without their prefix. On the wire an error is a google.rpc.Status
with one google.rpc.ErrorInfo in the trailer `grpc-status-details-bin`, and a google.rpc.RetryInfo where waiting helps;
`from_rpc` reads it back.
"""

from __future__ import annotations

from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import Metadata

from chassis.addresses import joined

DOMAIN = "triglot"
# Texts can repeat what a caller sent; gRPC refuses trailers of more than 8 KiB.
MAX_TEXT = 1000  # bytes
DETAILS_TRAILER = "grpc-status-details-bin"
# Of the milliseconds after which to try again, which others may write: some thirty years.
_MAX_DIGITS = 12


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


class TriglotError(Exception):
    """An error that a caller may see. `message` is for people, `reason` and `metadata` for programs."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, reason: str = "", **metadata: object) -> None:
        message = _cut(message)
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = {name: _cut(str(value)) for name, value in metadata.items()}

    def status(self) -> status_pb2.Status:
        """The error as a google.rpc.Status."""
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        status.details.add().Pack(info)
        if self.retry_after_ms is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(self.retry_after_ms)
            status.details.add().Pack(retry)
        return status

    @property
    def retry_after_ms(self) -> int | None:
        """After how many milliseconds the call may be tried again; None: there is no use in waiting."""
        shown = self.metadata.get("retry_after_ms", "")
        return int(shown) if shown.isdecimal() and len(shown) <= _MAX_DIGITS else None

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """Trailing metadata that carries the status to any gRPC client."""
        return ((DETAILS_TRAILER, self.status().SerializeToString()),)


class InvalidArgument(TriglotError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_FIELD"


class Unauthenticated(TriglotError):
    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "CREDENTIAL_INVALID"


class PermissionDenied(TriglotError):
    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "ACTION_NOT_ALLOWED"


class NotFound(TriglotError):
    code = grpc.StatusCode.NOT_FOUND
    default_reason = "RESOURCE_NOT_FOUND"


class AlreadyExists(TriglotError):
    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(TriglotError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "NOT_READY"


class Aborted(TriglotError):
    code = grpc.StatusCode.ABORTED
    default_reason = "CONFLICTING_WRITE"


class ResourceExhausted(TriglotError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RATE_LIMITED"


class Unavailable(TriglotError):
    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "DEPENDENCY_UNAVAILABLE"


class DeadlineExceeded(TriglotError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Unimplemented(TriglotError):
    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class Internal(TriglotError):
    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


class CannotStart(Exception):
    """Keeps a process from starting, or ends it. No caller sees it: its text is for a person and holds no secret."""

    exit_code: ClassVar[int] = 1


class WrongSetting(CannotStart, ValueError):
    """A setting is wrong or not set. The text names its environment variable."""

    exit_code = 2


class PortInUse(CannotStart):
    """Somebody else listens on our port, or the address is not ours."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"cannot listen on {joined(host, port)}: in use, not allowed, or not an address of this machine"
        )


_BY_CODE: dict[grpc.StatusCode, type[TriglotError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Unimplemented,
        Internal,
    )
}


_BY_NUMBER: dict[int, type[TriglotError]] = {code.value[0]: kind for code, kind in _BY_CODE.items()}


class InProcessError(grpc.aio.AioRpcError):
    """An error as a stub raises it when there is no wire. What it would carry there is made when it is asked for."""

    def __init__(self, raised: TriglotError, details: str) -> None:
        super().__init__(raised.code, Metadata(), Metadata(), details=details)
        self.raised = raised

    def trailing_metadata(self) -> Metadata:  # type: ignore[override]  # as AioRpcError has it
        return Metadata(*self.raised.trailers())


# What grpc.aio makes of a message that cannot be sent any more, before it has read the status that says why.
_ENDED_EARLY = (grpc.StatusCode.INTERNAL, "Internal error from Core")


def from_rpc(error: grpc.aio.AioRpcError) -> TriglotError:
    """The error that the other side raised, or the nearest one if it was not a Triglot service."""
    if isinstance(error, InProcessError):
        return error.raised
    for name, value in error.trailing_metadata() or ():
        if name == DETAILS_TRAILER and isinstance(value, bytes):
            return from_status(value)
    if (error.code(), error.details()) == _ENDED_EARLY:
        return Unavailable("the other side ended the call before it was sent, and why is not known")
    return _BY_CODE.get(error.code(), Internal)(error.details() or error.code().name)


def from_status(serialized: bytes) -> TriglotError:
    """The error in a serialized google.rpc.Status. Bytes that are none are an InvalidArgument of their own."""
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(serialized)
        found = any(detail.Unpack(info) for detail in status.details)
    except DecodeError:
        return InvalidArgument("the status of an error is no google.rpc.Status")
    kind = _BY_NUMBER.get(status.code, Internal)
    if found:
        error = kind(status.message, reason=info.reason)
        error.metadata.update(info.metadata)
        return error
    return kind(status.message)
