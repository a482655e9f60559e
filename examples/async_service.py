"""A service of your own: uvicorn async_service:app, curl --data-binary @photo.jpg http://127.0.0.1:8000/ -o out.jpg.

It bounds how many photos are under way, not how large they are; `visard web` is a ready-made service that does more.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response

import visard

under_way = asyncio.Semaphore(8)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the client for as long as the service runs."""
    async with visard.AsyncClient("127.0.0.1:8001") as app.state.client:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/")
async def anonymize(request: Request) -> Response:
    """Take the bytes of a photo, answer with those of the anonymised one."""
    async with under_way:
        try:
            result = await request.app.state.client.anonymize(await request.body())
        except visard.PhotoError as error:
            raise HTTPException(422, str(error)) from None
        return Response(await asyncio.to_thread(result.encode, "jpeg"), media_type="image/jpeg")
