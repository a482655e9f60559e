"""Callers of the SDK as type checkers see them: mypy in `make lint`, pyright too; the tests of the clients run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typing_extensions import assert_never, assert_type

import visard


def by_match(outcome: visard.Outcome) -> visard.Result | Exception:
    match outcome:
        case visard.Anonymized(result=result):
            assert_type(result, visard.Result)
            return result
        case visard.Failed(error=error):
            assert_type(error, Exception)
            return error
        case _:
            assert_never(outcome)


def by_class(outcome: visard.Outcome) -> visard.Result | Exception:
    if isinstance(outcome, visard.Failed):
        return assert_type(outcome.error, Exception)
    return assert_type(outcome.result, visard.Result)


def by_error(outcome: visard.Outcome) -> visard.Result | Exception:
    if outcome.error is not None:
        return assert_type(outcome.error, Exception)
    return assert_type(outcome.result, visard.Result)


def by_result(outcome: visard.Outcome) -> visard.Result | Exception:
    if outcome.result is None:
        return assert_type(outcome.error, Exception)
    return assert_type(outcome.result, visard.Result)


def many(client: visard.Client, photos: list[Path], progress: list[visard.Progress]) -> list[visard.Outcome]:
    return list(client.anonymize_many(photos, progress=progress.append))


async def many_async(
    client: visard.AsyncClient, photos: list[Path], progress: Callable[[visard.Progress], object]
) -> list[visard.Outcome]:
    return [outcome async for outcome in client.anonymize_many(photos, progress=progress)]


def choose(found: visard.Found) -> list[visard.Choice]:
    return ["leave" if face.too_small else "opposite" for face in found.faces]
