"""The client for callers without an event loop: it drives an `AsyncClient`, so that the protocol is written once."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from visard.client import AsyncClient
from visard.connection import DEFAULT_URL, Connection
from visard.local import Local
from visard.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from visard.options import Choice, Options
    from visard.pipeline import Found
    from visard.progress import Progress
    from visard.result import ApparentGender, Outcome, Result
    from visard.wire import Direction, Swap

T = TypeVar("T")

_UNWIND_S = 5.0


class Client:
    """Anonymises photographs through a server, for callers without an event loop.

    Runs an `AsyncClient` on a thread of its own. Close it, or use it as a context manager. May be shared by threads.

    Args:
        server: address or `Connection`; or a `Local` repository, whose models then run in this process.
        workers: threads for the work outside the server; the number of cores by default.

    Example:
        >>> with visard.Client("127.0.0.1:8001") as client:
        ...     result = client.anonymize("photo.jpg")
        >>> result.save("anonymised.jpg")

    In the examples of the methods, `client` is open.
    """

    def __init__(self, server: str | Connection | Local = DEFAULT_URL, *, workers: int | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="visard-client", daemon=True)
        self._client = AsyncClient(server, workers=workers)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the connection, cancel what is under way on the server and end the threads.

        Example:
            >>> client = visard.Client("127.0.0.1:8001")
            >>> client.close()
        """
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def anonymize(self, photo: Any, options: Options | None = None) -> Result:
        """Anonymise the faces in one photo; see `AsyncClient.anonymize`.

        Example:
            >>> result = client.anonymize("photo.jpg", visard.Options(direction="to_male", identity=True))
            >>> [face.target for face in result.faces]
            ['male']
            >>> result.save("anonymised.png")
        """
        return self._run(self._client.anonymize(photo, options))

    def find(self, photo: Any, options: Options | None = None, *, gender: bool = True) -> Found:
        """Find the faces in one photo, for a choice face by face; see `AsyncClient.find`.

        Example:
            >>> found = client.find("photo.jpg", gender=False)
            >>> len(found.faces)
            1
        """
        return self._run(self._client.find(photo, options, gender=gender))

    def anonymize_found(self, found: Found, choices: Sequence[Choice], options: Options | None = None) -> Result:
        """Anonymise a photo whose faces were found before; see `AsyncClient.anonymize_found`.

        Example:
            >>> found = client.find("photo.jpg")
            >>> choices = ["leave" if face.too_small else "opposite" for face in found.faces]
            >>> client.anonymize_found(found, choices).save("anonymised.jpg")
        """
        return self._run(self._client.anonymize_found(found, choices, options))

    def anonymize_many(
        self,
        photos: Iterable[Any],
        options: Options | None = None,
        *,
        window: int | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Iterator[Outcome]:
        """Anonymise many photos and yield what became of each in their order; see `AsyncClient.anonymize_many`.

        `progress` is called on the caller's own thread, so that it may draw and may use this client.

        Example:
            >>> for outcome in client.anonymize_many(["photo.jpg", "missing.jpg"]):
            ...     if isinstance(outcome, visard.Failed):
            ...         print(outcome.source, "was not anonymised:", type(outcome.error).__name__)
            ...     else:
            ...         outcome.result.save(f"anonymised_{outcome.source}")
            missing.jpg was not anonymised: UnreadablePhoto
        """
        report = Reporter(progress, photos)
        outcomes = self._client.anonymize_many(photos, options, window=window)
        try:
            while (outcome := self._run(_next(outcomes))) is not None:
                yield report(outcome)
        finally:
            self._run(outcomes.aclose())

    def swap(
        self,
        aligned: NDArray[np.uint8],
        direction: Direction | Sequence[Direction] = "opposite",
        personas: Sequence[int] | None = None,
    ) -> tuple[Swap, ...]:
        """Swap faces that the caller aligned; see `AsyncClient.swap`.

        Example:
            >>> aligned = client.find("photo.jpg").align(0)
            >>> (swap,) = client.swap(aligned, "to_female")
            >>> swap.swapped.shape
            (512, 512, 3)
        """
        return self._run(self._client.swap(aligned, direction, personas))

    def genders(self, aligned: NDArray[np.uint8]) -> tuple[ApparentGender, ...]:
        """Ask for the apparent gender of faces that the caller aligned; see `AsyncClient.genders`.

        Example:
            >>> aligned = client.find("photo.jpg").align(0)
            >>> (gender,) = client.genders(aligned)
            >>> gender.label in ("female", "male")
            True
        """
        return self._run(self._client.genders(aligned))

    def models(self) -> dict[str, bool]:
        """Ask which models of the contract the server has ready.

        Example:
            >>> client.models()["anonymizer"]
            True
        """
        return self._run(self._client.models())

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Ask where the served models come from; see `AsyncClient.provenance`.

        Example:
            >>> random = [model for model, origin in client.provenance().items() if origin.get("trained") is False]
        """
        return self._run(self._client.provenance())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the client is closed")
        ended = threading.Event()

        async def tracked() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(tracked(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():  # Ctrl-C ends the request on the server too; what follows must find it ended
                ended.wait(_UNWIND_S)
            raise


async def _next(outcomes: AsyncGenerator[Outcome, None]) -> Outcome | None:
    return await anext(outcomes, None)
