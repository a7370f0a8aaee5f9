"""The queue: its order, its places, and that nobody's stop, leave or fault is felt by another."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from ldm.errors import InputError
from ldm.page.engine import Engine, Waiting
from tests.page.conftest import in_a_loop


class Gate:
    """Work of `count` items, each of which waits until it is let through."""

    def __init__(self, count: int):
        self.count, self.begun, self.closed = count, threading.Event(), threading.Event()
        self.at = 0  # the item that is waited for
        self._let = threading.Semaphore(0)

    def let(self, count: int) -> None:
        self._let.release(count)

    def __call__(self, stopping: threading.Event) -> Iterator[int]:
        self.begun.set()
        try:
            for k in range(self.count):
                self.at = k
                assert self._let.acquire(timeout=20)
                yield k
                if stopping.is_set():
                    return
        finally:
            self.closed.set()


async def items(engine: Engine, owner: str, work: Callable, places: list[int] | None = None) -> list[Any]:
    """All items of a piece of work; notes its places."""
    found = []
    async for news in engine.follow((owner, "draw"), work):
        if isinstance(news, Waiting):
            if places is not None:
                places.append(news.ahead)
        else:
            found += news
    return found


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


def test_each_gets_all_of_his_items_in_order(engine: Engine):
    async def visit() -> list:
        return await asyncio.gather(
            *(items(engine, str(k), lambda _, k=k: iter(range(10 * k, 10 * k + 100))) for k in range(4))
        )

    assert in_a_loop(visit()) == [[*range(10 * k, 10 * k + 100)] for k in range(4)]


def test_a_place_counts_down_as_others_are_done(engine: Engine):
    first, second = Gate(1), Gate(1)
    places: list[int] = []

    async def visit() -> None:
        one = asyncio.create_task(items(engine, "one", first))
        await until(first.begun)
        two = asyncio.create_task(items(engine, "two", second))
        while engine._jobs[-1].owner[0] != "two":
            await asyncio.sleep(0.01)
        three = asyncio.create_task(items(engine, "three", lambda _: iter([1]), places))
        while 2 not in places:
            await asyncio.sleep(0.01)
        first.let(1)
        while 1 not in places:
            await asyncio.sleep(0.01)
        second.let(1)
        assert await asyncio.gather(one, two, three) == [[0], [0], [1]]

    in_a_loop(visit())
    assert places == sorted(places, reverse=True) and {1, 2} <= {*places}


def test_stopping_ends_ones_own_work_and_keeps_what_it_told(engine: Engine):
    mine, others = Gate(100), Gate(2)

    async def visit() -> None:
        one = asyncio.create_task(items(engine, "one", mine))
        await until(mine.begun)
        two = asyncio.create_task(items(engine, "two", others))
        mine.let(3)
        while mine.at < 3:
            await asyncio.sleep(0.01)
        engine.stop(("one", "draw"))
        mine.let(1)
        assert await one == [0, 1, 2, 3]
        others.let(2)
        assert await two == [0, 1]

    in_a_loop(visit())


def test_work_that_waits_is_dropped_when_it_is_stopped(engine: Engine):
    first, second = Gate(1), Gate(1)

    async def visit() -> None:
        one = asyncio.create_task(items(engine, "one", first))
        await until(first.begun)
        two = asyncio.create_task(items(engine, "two", second))
        while len(engine) < 2:
            await asyncio.sleep(0.01)
        engine.stop(("two", "draw"))
        assert await two == []
        first.let(1)
        assert await one == [0]

    in_a_loop(visit())
    assert not second.begun.is_set()


@pytest.mark.parametrize("waits", [False, True], ids=["at work", "in the queue"])
def test_who_leaves_frees_his_place(engine: Engine, waits: bool):
    leaver, other = Gate(100), Gate(2)

    async def visit() -> None:
        tasks = {}
        order = ["other", "leaver"] if waits else ["leaver", "other"]
        for name in order:
            tasks[name] = asyncio.create_task(items(engine, name, {"leaver": leaver, "other": other}[name]))
            while not any(job.owner[0] == name for job in engine._jobs):
                await asyncio.sleep(0.01)
        tasks["leaver"].cancel()
        with suppress(asyncio.CancelledError):
            await tasks["leaver"]
        leaver.let(1)
        other.let(2)
        assert await tasks["other"] == [0, 1]

    in_a_loop(visit())
    assert leaver.closed.is_set() != waits, "the work that was begun is closed, the other never began"
    assert not len(engine)


def test_a_fault_reaches_its_owner_and_nobody_else(engine: Engine):
    def bad(_: threading.Event) -> Iterator[int]:
        yield 1
        raise InputError("too large")

    async def visit() -> tuple:
        return await asyncio.gather(
            items(engine, "bad", bad), items(engine, "good", lambda _: iter([7])), return_exceptions=True
        )

    fault, good = in_a_loop(visit())
    assert isinstance(fault, InputError) and good == [7]


def test_an_interrupt_reaches_whoever_runs_the_engine_and_leaves_no_visitor_waiting():
    engine = Engine(most=5)

    def interrupted(_: threading.Event) -> Iterator[int]:
        yield 1
        while len(engine) < 2:
            time.sleep(0.01)
        raise KeyboardInterrupt

    async def visit() -> tuple:
        return await asyncio.gather(
            items(engine, "one", interrupted), items(engine, "two", lambda _: iter([2]))
        )

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(lambda: asyncio.run(asyncio.wait_for(visit(), 20)))
        with pytest.raises(KeyboardInterrupt):
            engine.run()
        engine.close()
        assert seen.result() == [[1], []]
        late = pool.submit(lambda: asyncio.run(asyncio.wait_for(items(engine, "late", interrupted), 20)))
        assert late.result() == []


def test_a_full_queue_is_said(engine: Engine):
    first = Gate(1)

    async def visit() -> None:
        one = asyncio.create_task(items(engine, "0", first))
        await until(first.begun)
        others = [asyncio.create_task(items(engine, str(k), lambda _: iter([]))) for k in range(1, 6)]
        while len(engine) < 6:
            await asyncio.sleep(0.01)
        with pytest.raises(InputError, match="5 others are waiting already"):
            await items(engine, "late", lambda _: iter([]))
        first.let(1)
        await asyncio.gather(one, *others)

    in_a_loop(visit())
