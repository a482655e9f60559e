"""What the handlers share, and the work behind them: a photo, through the SDK, off the event loop, a few at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from visard import Options, VisardError
from visard.pipeline import choices_of
from visard_web.body import FORM, FORM_OVERHEAD, PHOTO_TYPES, media_type, parse_form, read_body
from visard_web.problems import LONGEST_NAME, ClientDisconnected, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Any

    from starlette.requests import Request

    from visard import AsyncClient, Found, Result
    from visard.options import Choice
    from visard_web.limiter import ConcurrencyLimiter
    from visard_web.metrics import Metrics
    from visard_web.settings import Settings
    from visard_web.store import Store

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AppState:
    """Everything that handlers share.

    Attributes:
        settings: the operator's.
        client: to the models.
        limiter: the queue.
        store: photos of the page.
        metrics: counters.
        threads: for parsing and encoding; the client brings its own for the rest.
    """

    settings: Settings
    client: AsyncClient
    limiter: ConcurrencyLimiter
    store: Store
    metrics: Metrics
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="visard-web"))

    def options(self, **choices: Any) -> Options:
        """Make the SDK's options out of a caller's."""
        return Options(max_pixels=self.settings.max_pixels, **choices)

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Run on a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    async def read_fields(self, request: Request, *, raw: bool) -> dict[str, bytes]:
        """Read an upload: a form with `photo`, or the photo itself.

        Args:
            request: whose body has not been touched.
            raw: whether a bare photo is taken too.

        Raises:
            Problem: 415, neither; 400, a broken form or one without a photo; 413; 408.
        """
        content_type = request.headers.get("content-type", "")
        kind, limits = media_type(content_type), self.settings
        if kind == FORM:
            body = await read_body(request, limits.max_bytes, limits.read_s, overhead=FORM_OVERHEAD)
            fields = await self.on_thread(lambda: parse_form(content_type, body))
        elif raw and kind in PHOTO_TYPES:
            fields = {"photo": await read_body(request, limits.max_bytes, limits.read_s)}
        else:
            accepted = (FORM, *PHOTO_TYPES) if raw else (FORM,)
            raise Problem(415, "UnsupportedFormat", f"send the photo as {', '.join(accepted)}")
        if "photo" not in fields:
            raise Problem(400, "MalformedForm", "the form has no part named photo")
        if raw and len(fields) > 1:
            others = ", ".join(name[:LONGEST_NAME] for name in fields if name != "photo")
            raise Problem(
                400, "MalformedForm", f"the form has parts that nobody reads ({others}): options go into the query"
            )
        return fields

    async def find(
        self, request: Request, photo: bytes | Found, options: Options | None = None, *, gender: bool = True
    ) -> Found:
        """Find the faces in a photo; see `visard.AsyncClient.find`."""
        return await self._in_turn(request, lambda: self.client.find(photo, options or self.options(), gender=gender))

    async def anonymize(self, request: Request, photo: bytes, options: Options, chosen: Mapping[int, Choice]) -> Result:
        """Anonymise a photo and count its faces; see `visard.AsyncClient.anonymize`.

        Args:
            request: of the caller.
            photo: the bytes of a file.
            options: what to do with it.
            chosen: index of a face → what becomes of it, whatever the options say.

        Raises:
            Problem: 422, there is no face of such an index.
        """

        async def work() -> Result:
            if not chosen:
                return await self.client.anonymize(photo, options)
            found = await self.client.find(photo, options, gender=False)
            choices = choices_of(found, options)
            for index, choice in chosen.items():
                if index >= len(choices):
                    raise Problem(422, "InvalidRequest", f"there is no face {index}: there are {len(choices)}")
                choices[index] = choice
            return await self.client.anonymize_found(found, choices, options)

        return await self._counted(request, work)

    async def anonymize_found(self, request: Request, found: Found, choices: Sequence[Choice]) -> Result:
        """Swap faces as they were chosen and count them; see `visard.AsyncClient.anonymize_found`.

        The result has crops and scores, and no photo.
        """
        crops = self.options(output="crops")
        return await self._counted(request, lambda: self.client.anonymize_found(found, choices, crops))

    async def _counted(self, request: Request, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        result = await self._in_turn(request, work)
        self.metrics.count_result(result)
        return result

    async def ready(self) -> None:
        """Ask the server whether it has every model.

        Raises:
            Problem: 503, it has not, or does not answer.
        """
        try:
            missing = [model for model, there in (await self.client.models()).items() if not there]
        except VisardError:
            raise _not_ready(
                "the server with the models does not answer: is it running, and at the address that this one was given?"
            ) from None
        if missing:
            raise _not_ready(f"the server with the models lacks {', '.join(missing)}")

    async def _in_turn(self, request: Request, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Work once there is a slot; a caller who leaves also leaves the queue."""

        async def in_turn() -> T:
            async with self.limiter.slot():
                return await work()

        return await unless_disconnected(request, in_turn())


def _not_ready(detail: str) -> Problem:
    return Problem(503, "ServerUnavailable", detail, {"Retry-After": "5"})


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Work for a caller, whose body has been read, as long as the connection stands.

    Raises:
        ClientDisconnected: it broke; the work was cancelled, on the server too.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each
