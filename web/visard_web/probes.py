"""The endpoints for orchestrators and Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from visard_web import metrics
from visard_web.described import problems

if TYPE_CHECKING:
    from visard_web.state import AppState


class Live(BaseModel):
    """This process answers."""

    status: Literal["live"]


class Ready(BaseModel):
    """Photos can be anonymised now."""

    status: Literal["ready"]


def router(state: AppState) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/healthz", summary="Whether this process answers")
    async def healthz() -> Live:
        return Live(status="live")

    @routes.get("/readyz", summary="Whether the server with the models has them ready", responses=problems(503))
    async def readyz() -> Ready:
        await state.ready()
        return Ready(status="ready")

    @routes.get(
        "/metrics",
        summary="Counters for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401)},
    )
    async def read_metrics() -> Response:
        return Response(state.metrics.page(), headers={"Content-Type": metrics.CONTENT_TYPE})

    return routes
