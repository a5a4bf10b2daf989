"""One daemon thread per reward component: a call that overruns its time is abandoned, never joined, never doubled."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch


class StillRunning(RuntimeError):
    """A worker was given work although its last call, long abandoned, has not returned."""


class Call:
    """One call under way in a worker's thread.

    Attributes:
        seconds: What it took, once :meth:`wait` said so.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._started = time.perf_counter()
        self._cuda = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.seconds = 0.0

    def run(self) -> None:
        """Make the call; in the worker's thread only."""
        try:
            if self._cuda is not None:  # the current device is a thread's own
                torch.cuda.set_device(self._cuda)
            self._value = self._function()
        except BaseException as error:  # sys.exit() of a reward is a failure of it, too
            self._error = error
        self.seconds = time.perf_counter() - self._started
        self._done.set()

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return self._done.is_set()

    @property
    def running_s(self) -> float:
        """Seconds since it was begun."""
        return time.perf_counter() - self._started

    def wait(self, timeout_s: float) -> bool:
        """Wait until ``timeout_s`` seconds after the call began; whether it is done."""
        left = min(max(0.0, timeout_s - self.running_s), threading.TIMEOUT_MAX)
        return self._done.wait(left)

    def result(self) -> Any:
        """What the call returned, or raise what it raised; to be asked once it is done."""
        if self._error is not None:
            raise self._error
        return self._value


class Worker:
    """A daemon thread that makes one call at a time, always the same thread: connections may be bound to it.

    The thread starts with the first call, and ends with :meth:`close` or when the worker is forgotten. It never keeps
    the interpreter from exiting. Pickled or carried across a fork, a worker is as new.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: queue.SimpleQueue[Call | None] | None = None
        self._thread: threading.Thread | None = None
        self._last: Call | None = None

    def __reduce__(self) -> tuple[type[Worker], tuple[str]]:
        return Worker, (self.name,)

    @property
    def running(self) -> Call | None:
        """The call that has not returned yet."""
        if self._last is not None and self._thread is not None and self._thread.is_alive() and not self._last.done:
            return self._last
        return None

    def start(self, function: Callable[[], Any]) -> Call:
        """Begin a call.

        Raises:
            StillRunning: the last one has not returned.
        """
        if self.running is not None:
            raise StillRunning(f"{self.name}: its last call is still running")
        if self._thread is None or self._queue is None or not self._thread.is_alive():
            self._queue = queue.SimpleQueue()
            self._thread = threading.Thread(target=_work, args=(self._queue,), name=self.name, daemon=True)
            self._thread.start()
            weakref.finalize(self, self._queue.put, None).atexit = False
        self._last = Call(function)
        self._queue.put(self._last)
        return self._last

    def close(self) -> None:
        """Let the thread end after what it does now; a later call starts a new one."""
        if self._queue is not None:
            self._queue.put(None)
        self._queue = self._thread = self._last = None


def _work(calls: queue.SimpleQueue[Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # or its samples live until the next one
