"""The event loop in which asynchronous reward functions run: one for all, in a daemon thread, replaced if held up."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_THREADS = 64  # of asyncio.to_thread, at a time


class LoopHeldUp(RuntimeError):
    """An asynchronous reward holds the event loop without ever awaiting: nothing else can go on in it."""


class Ticket:
    """One coroutine in the loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = threading.Event()
        self.task: asyncio.Task[Any] | None = None
        self.cancelled = False
        self.held_up: str | None = None


class EventLoop:
    """An event loop in a daemon thread of its own.

    As in TRL, all asynchronous functions share one, so that clients bound to a loop can be shared, too, and live from
    one batch to the next. What they hand to ``asyncio.to_thread`` runs in daemon threads: Python would wait for the
    usual ones at exit, however long they hang.
    """

    _lock = threading.Lock()
    _shared: EventLoop | None = None

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_DaemonExecutor())
        self.loop.set_task_factory(self._make_task)
        self._open: set[Ticket] = set()
        self._owners: weakref.WeakKeyDictionary[asyncio.Task[Any], Ticket] = weakref.WeakKeyDictionary()
        self._thread = threading.Thread(target=self._run, name="rewards-async", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> EventLoop:
        """The loop in use; a new one in a forked process, or where the last one was held up."""
        with cls._lock:
            if cls._shared is None or not cls._shared._thread.is_alive():
                cls._shared = EventLoop()
            return cls._shared

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """Tasks that a reward starts are its own, so that it can be blamed for what they do."""
        task = asyncio.Task(coroutine, loop=loop, **options)
        parent = asyncio.current_task(loop)
        if parent is not None and parent in self._owners:
            self._owners[task] = self._owners[parent]
        return task

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, ticket: Ticket, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await ``make()`` in the loop and give what it gives; ``ticket`` is to cancel it by, from another thread.

        Raises:
            LoopHeldUp: somebody else holds the loop, see :meth:`cancel`.
            CancelledError: it was cancelled.
        """
        with self._lock:
            self._open.add(ticket)

        def begin() -> None:
            ticket.task = self.loop.create_task(_await(make))
            self._owners[ticket.task] = ticket
            ticket.task.add_done_callback(lambda _: ticket.done.set())
            if ticket.cancelled:
                ticket.task.cancel()

        self.loop.call_soon_threadsafe(begin)
        ticket.done.wait()
        with self._lock:
            self._open.discard(ticket)
        if ticket.held_up is not None:
            raise LoopHeldUp(
                f"the event loop of asynchronous rewards is held up by {ticket.held_up}, which never awaits"
            )
        assert ticket.task is not None
        return ticket.task.result()

    def cancel(self, ticket: Ticket, grace_s: float = 1.0) -> None:
        """Cancel a coroutine. If the loop does not answer, it is given up: whoever holds it is left alone with it."""
        ticket.cancelled = True
        answered = threading.Event()

        def end() -> None:
            if ticket.task is not None:
                ticket.task.cancel()
            answered.set()

        self.loop.call_soon_threadsafe(end)
        if answered.wait(grace_s):
            return
        current = asyncio.current_task(self.loop)
        holder = self._owners.get(current) if current is not None else None
        with self._lock:
            if EventLoop._shared is self:
                EventLoop._shared = None
            for one in self._open:
                if one is not holder:
                    one.held_up = "an unknown callback" if holder is None else repr(holder.name)
                    one.done.set()


class _DaemonExecutor(ThreadPoolExecutor):
    """A daemon thread per call, a limited number at work at a time."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # whose own threads are never started
        self._places = threading.BoundedSemaphore(_THREADS)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``function`` in a thread that does not keep the interpreter from exiting."""
        future: Future[Any] = Future()

        def work() -> None:
            with self._places:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=work, name="rewards-async-worker", daemon=True).start()
        return future


async def _await(make: Callable[[], Awaitable[Any]]) -> Any:
    return await make()
