"""What the server's refusals mean: a gRPC status becomes the error that says what the caller does next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from visard_errors import (
    DeadlineExceeded,
    Overloaded,
    PermissionDenied,
    ServerRefused,
    ServerUnavailable,
    VisardError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

# Triton's own words for a full queue and for a request that waited too long in one; both arrive as UNAVAILABLE.
_OVERLOAD_WORDS = ("maximum queue size", "request timeout expired")
_MISSING_MODEL_WORDS = ("unknown model", "is not found", "is not ready", "has no available versions")
_LOST_REGION_WORDS = "unable to find shared memory region"
_FOREIGN_REGION_WORDS = "unable to open shared memory region"
_TOO_LARGE_WORDS = "larger than max"  # gRPC's own, which gives them the status of a used-up limit
_UNTRUSTED_WORDS = "certificate_verify_failed"
_NO_TLS_WORDS = ("wrong_version_number", "expected settings frame")  # one side encrypts, the other does not
_CUT_WORDS = "rst_stream"  # a proxy lost its server in the middle of an answer
_DETAILS_LIMIT = 300  # a proxy may answer with a whole page


def error_from_status(status: str, details: str, url: str) -> VisardError:
    """Translate a gRPC status into the error that says what the caller does next.

    Args:
        status: name of the `grpc.StatusCode`, such as ``UNAVAILABLE``.
        details: the server's or the transport's explanation.
        url: the server's address, for the message.
    """
    words = details.lower()
    details = details[:_DETAILS_LIMIT]
    if any(phrase in words for phrase in _OVERLOAD_WORDS):
        return Overloaded(f"the server at {url} has a full queue ({details}): retry later or send less at once")
    if any(phrase in words for phrase in _MISSING_MODEL_WORDS):
        return ServerRefused(f"the server at {url} lacks a model: {details}. Its operator has to export and load it")
    if _LOST_REGION_WORDS in words:
        return ServerUnavailable(f"the server at {url} was restarted and has lost the shared memory: retry")
    if _FOREIGN_REGION_WORDS in words:
        return ServerRefused(
            f"the server at {url} cannot open this process's shared memory: it runs in another container or as "
            "another user. Let both share /dev/shm, or leave shared_memory off"
        )
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "protocol is restricted" in words:
        return PermissionDenied(f"the server at {url} rejected the credentials ({details}): check the token")
    if _TOO_LARGE_WORDS in words:
        return ServerRefused(f"the server at {url} does not take requests of this size: its operator has to allow it")
    if _UNTRUSTED_WORDS in words:
        return ServerRefused(
            f"the certificate of {url} is not trusted ({details}): name its authority in root_certificates, or have "
            "its operator renew it"
        )
    if any(phrase in words for phrase in _NO_TLS_WORDS):
        return ServerRefused(f"{url} and this client do not agree on encryption: check tls and the port ({details})")
    if status == "RESOURCE_EXHAUSTED":
        return Overloaded(f"the server at {url} is limiting requests ({details}): retry later or send less at once")
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"no answer from {url} within the deadline: allow more time or send less at once")
    if status in ("UNAVAILABLE", "CANCELLED") or _CUT_WORDS in words:
        return ServerUnavailable(f"no server answers at {url} ({details}): is it running? `visard serve` starts one")
    return ServerRefused(f"the server at {url} refused the request ({status}: {details}): tell its operator")


def parse_retry_after_s(metadata: Iterable[tuple[str, str | bytes]]) -> float:
    """Read from an error's trailing metadata how long to wait: gRPC's ``grpc-retry-pushback-ms``.

    Returns:
        Seconds; 0 where the server asked for none, infinite where no further attempt is wanted (by a negative or
        unreadable number, as gRPC has it).
    """
    asked = dict(metadata).get("grpc-retry-pushback-ms")
    if asked is None:
        return 0.0
    return int(asked) / 1000 if asked.isdigit() and len(asked) < 10 else math.inf
