"""What the REST API says of itself in its OpenAPI description: errors, bodies and examples. No behaviour."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from visard_web.body import FORM, PHOTO_TYPES
from visard_web.problems import MEDIA_TYPE

DESCRIPTION = """Anonymises faces in photographs by swapping their apparent gender.

Photos are worked on in memory and never written to disk. A photo fails closed: a face that cannot be
swapped well enough is covered, unless `unswapped` says otherwise; where the models do not answer, there is an error and
no picture."""

PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "error", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do, for people"},
        "error": {"type": "string", "description": "What is wrong, for programs: the SDK's class where it has one"},
        "request_id": {"type": "string"},
    },
}

_EXAMPLES = {
    400: ("MalformedForm", "the form cannot be read: it ends too early"),
    401: ("PermissionDenied", "an API key is needed: X-API-Key"),
    403: ("ForeignOrigin", "requests from pages of other sites are refused"),
    406: ("NotAcceptable", "choose among image/jpeg, image/png, image/webp and application/json"),
    408: ("TooSlow", "the upload did not end within 30 s: try again"),
    413: ("PhotoTooLarge", "the upload is larger than 20 MB: reduce the photo first"),
    415: (
        "UnsupportedFormat",
        "the photo of 37 bytes is a GIF: Visard reads still JPEG, PNG, WebP, AVIF and HEIC",
    ),
    421: ("UnknownHost", "this server is not known by that name: use its address, or name it"),
    422: (
        "NoFace",
        "no face was found: use a photo that shows one more clearly, or a lower detector_threshold",
    ),
    429: ("TooManyRequests", "more than 60 photos per 60 s: wait 12 s"),
    502: ("ServerRefused", "the server with the models cannot serve this request: tell the operator"),
    503: ("Overloaded", "too many photos are under way: try again in a few seconds"),
    504: ("DeadlineExceeded", "the models did not answer in time: try again later"),
}

_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of a route."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        error, detail = _EXAMPLES[status]
        example = {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "error": error,
            "request_id": "5b0f3c1e6f3a4c0d",
        }
        described[status] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}},
        }
        if status in (429, 503):
            described[status]["headers"] = _RETRY_AFTER
    return described


_BINARY = {"type": "string", "format": "binary"}

PHOTO_BODY = {
    "required": True,
    "description": "A still JPEG, PNG, WebP, AVIF or HEIC, told by its content: a form's part `photo`, or bare.",
    "content": {
        FORM: {
            "schema": {"type": "object", "required": ["photo"], "properties": {"photo": _BINARY}},
            "encoding": {"photo": {"contentType": ", ".join(PHOTO_TYPES)}},
        },
        **{kind: {"schema": _BINARY} for kind in PHOTO_TYPES},
    },
}

COUNTS = {
    f"Visard-Faces-{name}": {"schema": {"type": "integer"}, "description": description}
    for name, description in {
        "Found": "How many there are: those that the detector saw, and those drawn by hand",
        "Swapped": "Of these, swapped",
        "Covered": "Of these, covered",
        "Visible": "Of these, still visible",
    }.items()
}

PICTURES = {f"image/{name}": {"schema": _BINARY} for name in ("jpeg", "png", "webp")}
