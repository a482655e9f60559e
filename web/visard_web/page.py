"""The page's own endpoints: a photo is uploaded, its faces are chosen one by one, the result is shown and forgotten.

They are made for the page in `static/` and may change with it; programs use `visard_web.rest`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import HTMLResponse, JSONResponse, Response

from visard import VisardError
from visard.options import Choice
from visard.pipeline import blend, min_face_px
from visard.result import ImageFormat
from visard_web.again import alone, taken_over, that_may_do
from visard_web.body import media_type, read_body
from visard_web.faces import faces_found
from visard_web.languages import page_in, preferred
from visard_web.picture import Large
from visard_web.problems import Problem, unusable

if TYPE_CHECKING:
    from visard import Found, Result
    from visard_web.state import AppState
    from visard_web.store import Kept

_JSON_BYTES = 64 * 1024


class FaceChoice(BaseModel):
    """What becomes of one face."""

    index: int = Field(ge=0)
    direction: Choice


class Choices(BaseModel):
    """What becomes of the faces of one photo; one that is not named is swapped to the opposite."""

    faces: list[FaceChoice] = []


class Names(BaseModel):
    """Photos to forget."""

    ids: list[str] = []


class Boxes(BaseModel):
    """All boxes by hand of one photo, in its pixels: left, top, right, bottom."""

    boxes: list[tuple[float, float, float, float]] = []


def router(state: AppState) -> APIRouter:
    """Make the page's routes."""
    routes = APIRouter(include_in_schema=False)
    _add_page(routes, state)
    _add_photos(routes, state)
    _add_results(routes, state)
    _add_pictures(routes, state)
    return routes


def _add_page(routes: APIRouter, state: AppState) -> None:
    """The page itself, and what the server says of itself."""

    @routes.get("/")
    async def index(request: Request) -> HTMLResponse:
        language = preferred(request.headers.get("accept-language", ""))
        return HTMLResponse(
            page_in(language),
            headers={"Cache-Control": "no-cache", "Content-Language": language, "Vary": "Accept-Language"},
        )

    @routes.get("/page/about")
    async def about() -> JSONResponse:
        try:
            provenance = await state.client.provenance()
        except VisardError:  # what the page says first must not depend on the models
            provenance = {}
        untrained = sorted(model for model, origin in provenance.items() if origin.get("trained") is False)
        limits = state.settings
        return JSONResponse(
            {
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "keeps_for_s": limits.keep_s,
                "untrained": untrained,
                "min_face_px": await state.on_thread(min_face_px),
            }
        )


def _add_photos(routes: APIRouter, state: AppState) -> None:
    """Photos come, get boxes by hand, and are forgotten."""

    @routes.post("/page/photos")
    async def add(request: Request) -> JSONResponse:
        async with state.limiter.place():
            fields = await state.read_fields(request, raw=False)
            if fields.get("consent") != b"yes":
                raise Problem(403, "NoConsent", "confirm first that you may change the photo of these people")
            found = await state.find(request, fields["photo"])
            height, width = found.photo.shape[:2]
            return JSONResponse(
                {
                    "id": state.store.add(found),
                    "width": width,
                    "height": height,
                    "expires_in_s": state.settings.keep_s,
                    "faces": faces_found(found),
                },
                status_code=201,
            )

    @routes.post("/page/photos/{name}/boxes")
    async def draw(request: Request, name: str) -> JSONResponse:
        async with state.limiter.place():
            kept = state.store.get(name)
            asked = await _read_json(request, Boxes, state)
            try:
                options = state.options(boxes=asked.boxes)
            except ValueError as error:
                raise Problem(422, "InvalidRequest", str(error)) from None
            kept.found = await state.find(request, kept.found, options)
            kept.result = None  # its faces may have other numbers now
            state.store.make_room()
            return JSONResponse({"faces": faces_found(kept.found)})

    @routes.delete("/page/photos/{name}")
    async def forget(name: str) -> Response:
        state.store.forget([name])
        return Response(status_code=204)

    @routes.delete("/page/photos")
    async def forget_all(request: Request) -> Response:
        state.store.forget((await _read_json(request, Names, state)).ids)
        return Response(status_code=204)


def _add_results(routes: APIRouter, state: AppState) -> None:
    """Photos are anonymised."""

    @routes.post("/page/photos/{name}/anonymize")
    async def anonymize(request: Request, name: str) -> JSONResponse:
        async with state.limiter.place():
            kept = state.store.get(name)
            asked = await _read_json(request, Choices, state)
            found = kept.found
            choices: list[Choice] = ["opposite"] * len(found.faces)
            for face in asked.faces:
                if face.index >= len(choices):
                    raise Problem(422, "InvalidRequest", f"there is no face {face.index}")
                choices[face.index] = face.direction
            result = await state.anonymize_found(request, found, choices)
            kept.choices = tuple(choices)
            return _answer(kept, found, result)

    @routes.post("/page/photos/{name}/again")
    async def again(request: Request, name: str) -> JSONResponse:
        async with state.limiter.place():
            kept = state.store.get(name)
            found, result = kept.found, kept.result
            if result is None:
                raise _not_anonymized()
            if indices := that_may_do(result):
                choices = [kept.choices[index] for index in indices]
                another = await state.anonymize_found(request, alone(found, indices), choices)
                result = taken_over(result, another, indices)
            return _answer(kept, found, result)

    def _answer(kept: Kept, found: Found, result: Result) -> JSONResponse:
        if kept.found is not found:
            raise Problem(409, "Changed", "the faces of this photo were marked anew meanwhile: anonymise it again")
        kept.result = result
        state.store.make_room()
        return JSONResponse({"faces": _outcomes(found, result)})


def _add_pictures(routes: APIRouter, state: AppState) -> None:
    """Photos and faces, before and after."""

    @routes.get("/page/photos/{name}/before")
    async def before(name: str, format: ImageFormat = "jpeg") -> Large:
        kept = state.store.get(name)
        return await _picture(state, partial(kept.found.encode, format), format)

    @routes.get("/page/photos/{name}/after")
    async def after(name: str, format: ImageFormat = "png", download: bool = False) -> Large:
        kept = state.store.get(name)
        result, photo = kept.result, kept.found.photo
        if result is None:
            raise _not_anonymized()
        answer = await _picture(
            state, lambda: replace(result, photo=blend(photo, result.faces, result.others)).encode(format), format
        )
        if download:
            answer.headers["Content-Disposition"] = f'attachment; filename="anonymized.{_SUFFIX[format]}"'
        return answer

    @routes.get("/page/photos/{name}/faces/{index}")
    async def face_before(name: str, index: int) -> Large:
        found = state.store.get(name).found
        if not 0 <= index < len(found.faces):
            raise Problem(404, "NotFound", f"there is no face {index}")
        return await _picture(state, partial(found.encode_face, index), "png")

    @routes.get("/page/photos/{name}/faces/{index}/swapped")
    async def face_after(name: str, index: int) -> Large:
        kept = state.store.get(name)
        faces = () if kept.result is None else kept.result.faces
        face = next((face for face in faces if face.index == index), None)
        if face is None:
            raise _not_anonymized()
        return await _picture(state, face.encode, "png")


_SUFFIX: dict[ImageFormat, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}


def _outcomes(found: Found, result: Result) -> list[dict[str, Any]]:
    """Say what became of each face, in their order; the scores of those that were swapped."""
    described = faces_found(found)
    outcomes = [face.to_dict() | {"same_person": face.same_person} for face in result.faces]
    may = that_may_do(result)
    outcomes += [
        face.to_dict() | {"gender": described[face.index]["gender"], "another_may_do": face.index in may}
        for face in result.others
    ]
    return sorted(outcomes, key=lambda face: face["index"])


async def _picture(state: AppState, encode: Any, format: ImageFormat) -> Large:
    async with state.limiter.place():
        return Large(await state.on_thread(encode), media_type=f"image/{format}")


async def _read_json(request: Request, model: type[Any], state: AppState) -> Any:
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise Problem(415, "InvalidRequest", "send application/json")
    try:
        return model.model_validate_json(await read_body(request, _JSON_BYTES, state.settings.read_s))
    except ValidationError as error:
        raise unusable(error.errors(include_input=False, include_url=False)) from None


def _not_anonymized() -> Problem:
    return Problem(404, "NotAnonymized", "this face, or this photo, has not been anonymised yet")
