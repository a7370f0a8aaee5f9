"""The queue before the one shared model: one thread does every visitor's work, first come, first served.

That should be the thread that loaded the model. OpenMP lets the helpers of one thread wait at the ready;
those of a second must be woken for each product, and a small network takes twice as long.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from ldm.errors import InputError

PULSE = 1.0  # seconds between signs of life to a visitor who waits

Owner = tuple[str, str]  # the visitor, and the kind of work
Work = Callable[[threading.Event], Iterator[Any]]


@dataclass(frozen=True)
class Waiting:
    """A visitor's place: how many pieces of work are done before his."""

    ahead: int


class Job:
    """One visitor's piece of work: an iterator that is made, and driven, by the engine's thread.

    `stopping` asks the work to end early and keep what there is; `gone` says that nobody waits for it.
    """

    def __init__(self, owner: Owner, work: Work):
        self.owner, self.work = owner, work
        self.stopping = threading.Event()
        self.gone = False
        self.done = False
        self.fault: Exception | None = None
        self._news: SimpleQueue[Any] = SimpleQueue()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def tell(self, item: Any) -> None:
        """From the engine's thread: one more item of the work."""
        self._news.put(item)
        self._wake()

    def finish(self) -> None:
        """There will be no more items."""
        self.done = True
        self._wake()

    def _wake(self) -> None:
        # A server that shuts down has closed its loop already.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def news(self) -> list[Any]:
        """The items since the last call, waited for a second at most, and not once the work is done."""
        if not self.done:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), PULSE)
        self._changed.clear()
        return [self._news.get() for _ in range(self._news.qsize())]


class Engine:
    """The queue, and the work on it. `most` is how many pieces of work may wait."""

    def __init__(self, most: int):
        self.most = most
        self._jobs: list[Job] = []  # the first one is being done
        self._turn = threading.Condition()
        self._closed = False

    async def follow(self, owner: Owner, work: Work) -> AsyncIterator[Waiting | list[Any]]:
        """Queues a piece of work and tells of it at least once a second: the place, then its items.

        Whoever closes this iterator frees the place. Raises InputError where the queue is full, and whatever
        the work raises.
        """
        job = Job(owner, work)
        with self._turn:
            if len(self._jobs) > self.most:
                raise InputError(f"{self.most} others are waiting already: please try again in a minute.")
            self._jobs.append(job)
            job.done = self._closed  # then nobody does it any more
            self._turn.notify()
        try:
            yield Waiting(self.ahead(job))
            ended = False
            while not ended:
                # What was told before the end is in the news that are read after it.
                ended = job.done
                news = await job.news()
                ahead = self.ahead(job)
                yield Waiting(ahead) if ahead and not news else news
            if job.fault is not None:
                raise job.fault
        finally:
            self._leave(job)

    def ahead(self, job: Job) -> int:
        """How many pieces of work are done before this one."""
        with self._turn:
            return self._jobs.index(job) if job in self._jobs else 0

    def stop(self, owner: Owner) -> None:
        """Ends an owner's work early: what is being done keeps what there is, what waits is dropped."""
        with self._turn:
            for job in [job for job in self._jobs if job.owner == owner]:
                job.stopping.set()
                if job is not self._jobs[0]:
                    self._jobs.remove(job)
                    job.finish()

    def leave(self, visitor: str, kind: str | None = None) -> None:
        """Drops the work of a visitor who is no longer there, or only that of a kind."""
        with self._turn:
            mine = [job for job in self._jobs if job.owner[0] == visitor and kind in (None, job.owner[1])]
        for job in mine:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        job.gone = True
        with self._turn:
            if job in self._jobs[1:]:
                self._jobs.remove(job)
                job.finish()

    def __len__(self) -> int:
        """How many pieces of work there are, the one that is being done among them."""
        with self._turn:
            return len(self._jobs)

    def run(self) -> None:
        """Does what is queued, in the thread that calls it, until it is interrupted or the engine closed."""
        while (job := self._next()) is not None:
            try:
                self._do(job)
            finally:
                with self._turn:
                    self._jobs.remove(job)
                job.finish()

    def close(self) -> None:
        """Ends all work, what is being done after the step that it is at."""
        with self._turn:
            self._closed = True
            for job in self._jobs:
                job.gone = True
                job.finish()
            self._turn.notify()

    def _next(self) -> Job | None:
        """The first piece of work, waited for; None once the engine is closed."""
        with self._turn:
            while not (self._jobs or self._closed):
                self._turn.wait(PULSE)  # Windows hears of Ctrl-C in between
            return None if self._closed else self._jobs[0]

    @staticmethod
    def _do(job: Job) -> None:
        """Drives a piece of work to its end, or until nobody waits for it, and notes what it raised."""
        if job.gone:
            return
        items: Iterator[Any] = iter(())
        try:
            items = job.work(job.stopping)
            for item in items:
                if job.gone:
                    break
                job.tell(item)
        except Exception as fault:
            job.fault = fault
        finally:
            close = getattr(items, "close", None)
            if close:
                close()
