"""Errors as `application/problem+json` (RFC 9457): one shape for everything that is not an answer.

`error` is the name of the class that the SDK would raise (`visard_errors`); what HTTP alone can get wrong has names of
its own. `detail` is a sentence for people.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from visard_errors import (
    CorruptPhoto,
    DeadlineExceeded,
    FaceTooSmall,
    NoFace,
    Overloaded,
    PermissionDenied,
    PhotoError,
    PhotoTooLarge,
    ServerError,
    ServerRefused,
    ServerUnavailable,
    UncertainGender,
    UnsupportedFormat,
    VisardError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499  # nginx' number, which HTTP has none for
LONGEST_NAME = 40  # of a parameter or a part that is repeated in an answer
_RETRY_S = 5  # where a server that is away or full did not say when to come back

# What an HTTP caller makes of each error; a subclass not named here takes its parent's status.
_STATUS: dict[type[VisardError], int] = {
    UnsupportedFormat: 415,
    PhotoTooLarge: 413,
    CorruptPhoto: 422,
    NoFace: 422,
    FaceTooSmall: 422,
    UncertainGender: 422,
    PhotoError: 422,
    ServerUnavailable: 503,
    Overloaded: 503,
    DeadlineExceeded: 504,
    PermissionDenied: 502,  # not the caller's key: that of this server at the models' gateway
    ServerError: 502,
}


@dataclass(eq=False)
class Problem(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: HTTP's.
        error: a class name of `visard_errors`, or another word of the same kind.
        detail: a sentence: what is wrong and what to do.
        headers: further headers of the answer.
    """

    status: int
    error: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.error}: {self.detail}"


class ClientDisconnected(Exception):
    """The caller did not wait for the answer, or stopped reading it."""


def problem_of(error: VisardError) -> Problem:
    """Say what an error of the SDK means to a caller over HTTP."""
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    # The SDK's message about a server is for the operator only: it names an address.
    detail = str(error) if status < HTTPStatus.INTERNAL_SERVER_ERROR else _DETAILS.get(type(error), _DEFECT)
    headers = {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        asked = error.retry_after_s if isinstance(error, Overloaded) else 0.0
        headers["Retry-After"] = str(max(_RETRY_S, math.ceil(asked)) if math.isfinite(asked) else 3600)
    return Problem(status, type(error).__name__, detail, headers)


_DEFECT = "this server cannot do its work: tell its operator"
_DETAILS: dict[type[VisardError], str] = {
    Overloaded: "the models are busy: try again in a few seconds",
    ServerUnavailable: "the server with the models cannot be reached: try again in a moment, or tell the operator",
    DeadlineExceeded: "the models did not answer in time: try again later, or send a photo with fewer faces",
    ServerRefused: "the server with the models cannot serve this request: tell the operator",
    PermissionDenied: "this web server was not let in by the server with the models: tell the operator",
}


def unusable(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Say what is wrong with a request's values, without repeating them; `errors` is pydantic's list."""
    places = "; ".join(f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors[:5])
    return Problem(422, "InvalidRequest", f"the request cannot be used: {places}")


def problem_body(problem: Problem, request_id: str) -> dict[str, Any]:
    """Write the members of a problem."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "error": problem.error,
        "request_id": request_id,
    }


def problem_response(problem: Problem, request_id: str) -> Response:
    """Write the answer to a request that failed."""
    return Response(
        json.dumps(problem_body(problem, request_id), ensure_ascii=False),
        problem.status,
        headers=dict(problem.headers),
        media_type=MEDIA_TYPE,
    )
