"""The app: page, REST API, middleware and errors put together."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from visard import AsyncClient, VisardError
from visard_web import page, probes, rest
from visard_web.described import DESCRIPTION, PROBLEM
from visard_web.keys import Keys
from visard_web.languages import STATIC
from visard_web.limiter import ConcurrencyLimiter, Rate
from visard_web.memory import give_back
from visard_web.metrics import Metrics
from visard_web.middleware import RequestMiddleware
from visard_web.problems import (
    CLIENT_CLOSED_REQUEST,
    ClientDisconnected,
    Problem,
    problem_of,
    problem_response,
    unusable,
)
from visard_web.reference import reference_page
from visard_web.state import AppState
from visard_web.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from visard import Connection, Local
    from visard_web.settings import Settings

_SWEEP_S = 5.0


def create_app(connection: Connection | Local, settings: Settings) -> FastAPI:
    """Make the app.

    Args:
        connection: to the models.
        settings: the operator's.

    Raises:
        DataError: the file with the API keys cannot be used.
    """
    limiter = ConcurrencyLimiter(in_work=settings.in_work, waiting=settings.waiting, wait_s=settings.wait_s)
    store = Store(keep_s=settings.keep_s, most=settings.keep_photos, most_bytes=settings.keep_bytes)
    state = AppState(
        settings=settings,
        client=AsyncClient(connection),
        limiter=limiter,
        store=store,
        metrics=Metrics(limiter, store),
    )

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        async with state.client:
            await state.client.warm_up(state.options())
            with suppress(VisardError):  # not there yet; /readyz says so. Its protocol is loaded now
                await state.client.models()
            sweeper = asyncio.create_task(_sweep(state))
            yield
            sweeper.cancel()
            state.threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Visard",
        version=version("visard"),
        description=DESCRIPTION,
        docs_url=None,  # they would load scripts from elsewhere: see `visard_web.reference`
        redoc_url=None,
        lifespan=running,
        exception_handlers=_HANDLERS,
    )
    app.include_router(rest.router(state))
    app.include_router(probes.router(state))
    app.include_router(page.router(state))

    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()))

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(
        RequestMiddleware,
        rate=Rate(settings.rate),
        metrics=state.metrics,
        keys=None if settings.keys is None else Keys(settings.keys),
        hosts=settings.hosts,
    )
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


async def _sweep(state: AppState) -> None:
    """Forget what is too old also when nobody asks, and give its memory back once nobody works."""
    worked = kept = 0
    while True:
        await asyncio.sleep(_SWEEP_S)
        state.store.make_room()
        now = state.limiter.entered, len(state.store)
        if not state.limiter.present and now != (worked, kept):
            worked, kept = now
            await state.on_thread(give_back)


def _describe(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        schemas = described["components"]["schemas"]
        schemas["Problem"] = PROBLEM
        schemas["Anonymized"] = rest.Anonymized.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schemas["Anonymized"].pop("$defs"))
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        described["components"]["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
        app.openapi_schema = described
    return app.openapi_schema


async def _answer(request: Request, error: Exception) -> Response:
    """Turn whatever was raised into a problem, and tell the middleware its class."""
    if isinstance(error, VisardError):
        problem = problem_of(error)
    elif isinstance(error, Problem):
        problem = error
    elif isinstance(error, RequestValidationError):
        problem = unusable(error.errors())
    elif isinstance(error, HTTPException):
        problem = Problem(
            error.status_code, _HTTP_ERRORS.get(error.status_code, "InvalidRequest"), error.detail, error.headers or {}
        )
    elif isinstance(error, (ClientDisconnect, ClientDisconnected)):
        request.scope["visard"].error = "ClientDisconnected"
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # for the log: nobody reads it
    else:
        problem = Problem(500, "InternalError", "this server has a defect: tell its operator")
    exchange = request.scope["visard"]
    exchange.error = problem.error
    return problem_response(problem, exchange.request_id)


_HTTP_ERRORS = {404: "NotFound", 405: "MethodNotAllowed"}
_HANDLERS = cast(
    "Any",
    dict.fromkeys(
        (VisardError, Problem, RequestValidationError, HTTPException, ClientDisconnect, ClientDisconnected, Exception),
        _answer,
    ),
)
