"""How many faces are under way at once, and who comes next."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from visard.slots import Slots
from visard_errors import Overloaded, ServerUnavailable


class Faces:
    """Faces that stay in their slots until they are told how they end."""

    def __init__(self, slots):
        self.slots = slots
        self.inside = []
        self._ends = {}
        self.tasks = {}

    async def come(self, *names, again=False):
        for name in names:
            self._ends[name] = asyncio.get_running_loop().create_future()
            self.tasks[name] = asyncio.ensure_future(self._stay(name, again))
        await settle()

    async def _stay(self, name, again):
        with suppress(Overloaded, ServerUnavailable):
            async with self.slots.slot(again=again):
                self.inside.append(name)
                try:
                    await self._ends[name]
                finally:
                    self.inside.remove(name)

    async def leave(self, *names):
        for name in names:
            self._ends[name].set_result(None)
        await settle()

    async def fail(self, name, error):
        self._ends[name].set_exception(error)
        await settle()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_as_many_as_there_are_slots_and_the_others_in_their_order():
    async def run():
        faces = Faces(Slots(2))
        await faces.come(*"abcde")
        assert faces.inside == ["a", "b"]
        await faces.leave("b")
        assert faces.inside == ["a", "c"]
        await faces.leave("a", "c")
        assert faces.inside == ["d", "e"]

    asyncio.run(run())


def test_a_refusal_lowers_the_limit_to_what_is_under_way_and_each_round_of_answers_raises_it_by_one():
    async def run():
        faces = Faces(Slots(4))
        await faces.come(*"abcdefghijklmnopqrstuvwxyz")
        await faces.fail("d", Overloaded("full"))
        assert faces.inside == ["a", "b", "c"]
        await faces.leave("a", "b")
        assert len(faces.inside) == 3
        await faces.leave("c", "e")
        assert len(faces.inside) == 4
        for _ in range(8):
            await faces.leave(faces.inside[0])
        assert len(faces.inside) == 4  # no more than at first

    asyncio.run(run())


def test_a_limit_of_one_stays():
    async def run():
        faces = Faces(Slots(4))
        await faces.come("a")
        await faces.fail("a", Overloaded("full of others"))
        await faces.come("b", "c")
        assert faces.inside == ["b"]
        await faces.leave("b")
        assert faces.inside == ["c"]

    asyncio.run(run())


def test_what_was_refused_goes_first():
    async def run():
        faces = Faces(Slots(1))
        await faces.come("a", "b", "c")
        await faces.come("refused", "refused later", again=True)
        order = []
        for _ in range(5):
            order += faces.inside
            await faces.leave(*faces.inside)
        assert order == ["a", "refused", "refused later", "b", "c"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("slots", "error"), [(Slots(3, adapts=False), Overloaded("full")), (Slots(3), ServerUnavailable("gone"))]
)
def test_nothing_else_lowers_the_limit(slots, error):
    async def run():
        faces = Faces(slots)
        await faces.come(*"abcd")
        await faces.fail("a", error)
        assert faces.inside == ["b", "c", "d"]

    asyncio.run(run())


def test_who_leaves_the_queue_takes_no_slot_along():
    async def run():
        faces = Faces(Slots(1))
        await faces.come(*"abcd")
        faces.tasks["b"].cancel()
        await settle()
        faces._ends["a"].set_result(None)
        faces.tasks["c"].cancel()  # in the moment in which the slot may be handed to it
        await settle()
        assert faces.inside == ["d"]
        await faces.leave("d")
        await faces.come("e")
        assert faces.inside == ["e"]

    asyncio.run(run())


def test_who_is_cancelled_while_the_slot_is_handed_over_gives_it_back():
    async def hold(slots):
        async with slots.slot():
            pass

    async def run():
        slots = Slots(1)
        async with slots.slot():
            waiting = asyncio.ensure_future(hold(slots))
            await settle()
        waiting.cancel()  # its turn has come, and it has not run yet
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(hold(slots), 1)

    asyncio.run(run())
