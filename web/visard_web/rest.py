"""The REST API: takes a photo, returns it anonymised, or its faces, and keeps nothing."""

from __future__ import annotations

import base64
import json
from difflib import get_close_matches
from functools import partial
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from visard.boxes import Box, check_boxes, parse_box
from visard.declared import declared, words
from visard.options import Choice, Options, PersonaKey
from visard.policy import FaceOutcome, Reason
from visard.result import ImageFormat, Result
from visard_web.described import COUNTS, PHOTO_BODY, PICTURES, problems
from visard_web.faces import faces_found
from visard_web.picture import Large
from visard_web.problems import LONGEST_NAME, Problem

if TYPE_CHECKING:
    from visard_web.state import AppState

_KEY_HEADER = "Visard-Persona-Key"
_BASE64_PIECE = 3 * 256 * 1024  # a multiple of three, so that the pieces' texts make up that of the whole


class Gender(BaseModel):
    """A classifier's opinion of a picture, not a statement about a person."""

    label: Literal["female", "male"]
    confidence: float = Field(ge=0.5, le=1)


class FoundFace(BaseModel):
    """A face in a photo."""

    index: int = Field(ge=0)
    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom in pixels of the photo")
    too_small: bool = Field(description="whether it is too small to be swapped")
    reason: Reason | None = Field(None, description="why it cannot be swapped, only covered; null where it can")
    by_hand: bool = Field(False, description="whether it is a box that was sent with the photo")
    gender: Gender | None = Field(description="null where it cannot be swapped, or nobody asked")


class FoundFaces(BaseModel):
    """The faces in a photo: those that were detected, largest first, then those drawn by hand."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "width": 512,
                "height": 512,
                "faces": [
                    {
                        "index": 0,
                        "box": [176.5, 77.0, 266.5, 167.0],
                        "too_small": False,
                        "reason": None,
                        "by_hand": False,
                        "gender": {"label": "female", "confidence": 0.98},
                    }
                ],
            }
        }
    )
    width: int
    height: int
    faces: list[FoundFace]


class SwappedFace(BaseModel):
    """One face and what stands in its place."""

    index: int = Field(ge=0)
    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom in pixels of the photo")
    outcome: Literal["swapped", "visible"] = Field(description="visible: not well enough, and unswapped=show")
    reason: Reason | None = Field(description="why the swap is not good enough")
    target: Literal["female", "male"]
    gender: Gender | None = Field(description="before; null where the direction was given")
    swapped_gender: Gender
    flipped: bool = Field(description="whether the classifier sees the intended gender in the result")
    similarity_percent: float
    pixel_cosine: float
    identity_distance: float | None = Field(description="null with identity=false; below 0.6 one is still recognised")
    image: str | None = Field(None, description="output=crops: the generated face in base64, 512×512")


class OtherFace(BaseModel):
    """One face in whose place nothing was generated."""

    index: int = Field(ge=0)
    box: tuple[float, float, float, float] = Field(description="left, top, right, bottom in pixels of the photo")
    outcome: FaceOutcome
    reason: Reason


class Anonymized(BaseModel):
    """An anonymised photo and its scores."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "faces_found": 1,
                "faces": [
                    {
                        "index": 0,
                        "box": [176.5, 77.0, 266.5, 167.0],
                        "outcome": "swapped",
                        "reason": None,
                        "target": "male",
                        "gender": {"label": "female", "confidence": 0.98},
                        "swapped_gender": {"label": "male", "confidence": 0.97},
                        "flipped": True,
                        "similarity_percent": 47.1,
                        "pixel_cosine": 0.97,
                        "identity_distance": 0.72,
                    }
                ],
                "others": [],
                "seconds": {"decode": 0.01, "find": 0.3, "align": 0.01, "swap": 0.4, "score": 0.02, "blend": 0.02},
                "media_type": "image/jpeg",
                "image": "/9j/4AAQSkZJRg…",
            }
        }
    )
    faces_found: int
    faces: list[SwappedFace]
    others: list[OtherFace] = Field(description="those that were covered, or left visible")
    seconds: dict[str, float]
    media_type: Literal["image/jpeg", "image/png", "image/webp"]
    image: str | None = Field(None, description="the photo in base64; absent with output=crops")


# Named one by one: an option that comes to `visard.Options` is the operator's until it is let in here.
_CALLERS = (
    "faces",
    "direction",
    "min_confidence",
    "unswapped",
    "cover",
    "output",
    "identity",
    "detector_threshold",
    "keep",
)
_FINDERS = ("detector_threshold",)

_LONGEST_BOX = 80  # characters


def _boxes(
    box: Annotated[
        list[Annotated[str, Field(max_length=_LONGEST_BOX)]],
        Query(
            description="Around a face that the detector misses: left,top,right,bottom in pixels of the upright photo. "
            "Once for each such face, at most 100 times. It is swapped or covered as any other.",
            examples=[["310,42,398,151"]],
        ),
    ] = [],  # noqa: B006 - the framework copies it
) -> tuple[Box, ...]:
    """Take the boxes by hand out of the query.

    Raises:
        Problem: 422, one is none, or there are too many.
    """
    try:
        return check_boxes(map(parse_box, box))
    except ValueError as error:
        raise Problem(422, "InvalidRequest", f"box: {error}") from None


def _chosen(
    choice: Annotated[
        list[Annotated[str, Field(pattern=f"^[0-9]{{1,4}}:({'|'.join(get_args(Choice))})$")]],
        Query(
            description="What becomes of one face: its `index`, as /v1/faces gives it for the same photo, boxes and "
            "detector_threshold, a colon, and the choice. Of the others `faces` and `direction` decide.",
            examples=[["1:leave"]],
        ),
    ] = [],  # noqa: B006 - the framework copies it
) -> dict[int, Choice]:
    """Take the choices for single faces out of the query.

    Raises:
        Problem: 422, there are two for one face.
    """
    made = {int(index): cast("Choice", word) for index, word in (each.split(":") for each in choice)}
    if len(made) < len(choice):
        raise Problem(422, "InvalidRequest", "choice: there are two for one face")
    return made


def _query(names: tuple[str, ...]) -> Any:
    """Make what takes options out of the query: `visard.Options` declares them, the signature lists them."""

    def taken(**query: Any) -> dict[str, Any]:
        return query

    taken.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(
                option.name,
                Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=Annotated[option.type, option.range, Query(description=option.words)],
            )
            for option in declared(Options)
            if option.name in names
        ]
    )
    return Depends(taken)


# A header: an address gets logged by every proxy on the way.
PersonaKeyHeader = Annotated[str | None, Header(alias=_KEY_HEADER, min_length=1, description=words(PersonaKey))]


def only(*parameters: str) -> Any:
    """Make what refuses a query with other parameters than a route's: a misspelled one would be left out in silence.

    Headers of ours are held to the same.
    """

    def check(request: Request) -> None:
        ours = [name for name in request.headers if name.startswith("visard-")]
        for given, known in ((list(request.query_params), parameters), (ours, (_KEY_HEADER.lower(),))):
            for name in given:
                if name not in known:
                    nearest = get_close_matches(name[:LONGEST_NAME].lower(), known, n=1)
                    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
                    raise Problem(422, "InvalidRequest", f"there is no parameter {name[:LONGEST_NAME]}: {hint}")

    return Depends(check)


def router(state: AppState) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(prefix="/v1", tags=["photos"])
    _add_faces(routes, state)
    _add_anonymize(routes, state)
    return routes


_ERRORS = problems(400, 401, 403, 408, 413, 415, 421, 422, 429, 502, 503, 504)


def _add_faces(routes: APIRouter, state: AppState) -> None:
    @routes.post(
        "/faces",
        summary="Find the faces in a photo",
        dependencies=[only("gender", "box", *_FINDERS)],
        openapi_extra={"requestBody": PHOTO_BODY},
        responses=_ERRORS,
    )
    async def faces(
        request: Request,
        query: Annotated[dict[str, Any], _query(_FINDERS)],
        boxes: Annotated[tuple[Box, ...], Depends(_boxes)],
        gender: Annotated[bool, Query(description="also say the apparent gender of each face")] = True,
    ) -> FoundFaces:
        async with state.limiter.place():
            fields = await state.read_fields(request, raw=True)
            found = await state.find(request, fields["photo"], state.options(**query, boxes=boxes), gender=gender)
        height, width = found.photo.shape[:2]
        return FoundFaces(width=width, height=height, faces=[FoundFace(**face) for face in faces_found(found)])


_ANONYMIZED = {
    200: {
        "description": "The anonymised photo",
        "content": {**PICTURES, "application/json": {"schema": {"$ref": "#/components/schemas/Anonymized"}}},
        "headers": COUNTS,
    },
    **_ERRORS,
    **problems(406),
}


def _add_anonymize(routes: APIRouter, state: AppState) -> None:
    @routes.post(
        "/anonymize",
        summary="Anonymise the faces in a photo",
        description=(
            "Answers with the picture, or with JSON that holds it in base64 and the scores of each face, as `Accept` "
            "asks; with output=crops always with JSON. The picture has no metadata of the "
            "original, but for what `keep` names; it is marked as algorithmically generated."
        ),
        dependencies=[only(*_CALLERS, "format", "box", "choice")],
        openapi_extra={"requestBody": PHOTO_BODY},
        response_class=Large,
        responses=_ANONYMIZED,
    )
    async def anonymize(
        request: Request,
        query: Annotated[dict[str, Any], _query(_CALLERS)],
        boxes: Annotated[tuple[Box, ...], Depends(_boxes)],
        chosen: Annotated[dict[int, Choice], Depends(_chosen)],
        format: Annotated[
            ImageFormat | None, Query(description="Of the picture; by default what Accept prefers, or JPEG.")
        ] = None,
        persona_key: PersonaKeyHeader = None,
    ) -> Large:
        media_type, format = _negotiate(request.headers.get("accept", ""), query["output"], format)
        key = None if persona_key is None else persona_key.encode("latin-1")  # the bytes that were sent
        options = state.options(**query, boxes=boxes, persona_key=key)
        async with state.limiter.place():
            fields = await state.read_fields(request, raw=True)
            result = await state.anonymize(request, fields["photo"], options, chosen)
            if media_type == "application/json":
                encode = partial(_as_json, result, format)
            else:
                encode = partial(result.encode, format)
            answer = Large(await state.on_thread(encode), media_type=media_type)
        answer.headers["Visard-Faces-Found"] = str(result.faces_found)
        for outcome in get_args(FaceOutcome):
            answer.headers[f"Visard-Faces-{outcome.capitalize()}"] = str(result.count(outcome))
        return answer


def _negotiate(accept: str, output: Literal["photo", "crops"], format: ImageFormat | None) -> tuple[str, ImageFormat]:
    """Decide what the answer is: its media type and the format of the picture in it.

    Args:
        accept: the header.
        output: crops fit into no picture, and come as JSON.
        format: what the caller wants to have; None for any.

    Raises:
        Problem: 406, nothing that is accepted can be made.
    """
    formats: tuple[ImageFormat, ...] = ("jpeg", "png", "webp") if format is None else (format,)
    offered = [] if output == "crops" else [f"image/{format}" for format in formats]
    offered.append("application/json")
    best = max(offered, key=lambda kind: _quality(accept, kind))  # the first of those that are liked as much
    if _quality(accept, best) <= 0:
        raise Problem(406, "NotAcceptable", f"choose among {', '.join(offered)}")
    return best, formats[0] if best == "application/json" else cast("ImageFormat", best.partition("/")[2])


def _quality(accept: str, kind: str) -> float:
    """How much a caller likes a media type, 0..1, by the most specific range that matches (RFC 9110, 12.5.1)."""
    if not accept.strip():
        return 1.0
    matches = []
    for each in accept.split(","):
        name, *parameters = (part.strip().lower() for part in each.split(";"))
        specific = {kind: 2, f"{kind.partition('/')[0]}/*": 1, "*/*": 0}.get(name)
        if specific is None:
            continue
        quality = next((value[2:].strip() for value in parameters if value.startswith("q=")), "1")
        try:
            matches.append((specific, min(1.0, max(0.0, float(quality)))))
        except ValueError:
            continue
    return max(matches)[1] if matches else 0.0


def _as_json(result: Result, format: ImageFormat) -> bytes:
    """Write scores and pictures as JSON.

    The base64 is put together as bytes and in pieces: `json` would hold the interpreter, and with it the event loop,
    for as long as it takes to copy a large text.
    """
    body: dict[str, Any] = {
        **result.to_dict(),
        "media_type": f"image/{format}",
    }
    if result.photo is None:
        for face, described in zip(result.faces, body["faces"], strict=True):
            described["image"] = base64.b64encode(face.encode(format)).decode()
        return json.dumps(body).encode()
    photo = result.encode(format)
    pieces = (photo[start : start + _BASE64_PIECE] for start in range(0, len(photo), _BASE64_PIECE))
    return b"".join([json.dumps(body)[:-1].encode(), b', "image": "', *map(base64.b64encode, pieces), b'"}'])
