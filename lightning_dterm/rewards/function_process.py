"""A reward function in a process of its own, which can be killed: a thread that holds Python's global lock cannot."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from lightning_dterm.rewards import function_worker
from lightning_dterm.rewards.function_worker import receive, send


class IsolatedFailure(RuntimeError):
    """The function raised in its process, or the process died; the message says what."""


class _Remote(Exception):
    """A traceback of the other process, as text."""


class FunctionProcess:
    """Calls a function in a child process that lives from call to call, and starts another one after it died.

    The function is imported there anew. Pickled and forked copies have processes of their own. The child never outlives
    the thread that made the first call after its start.

    Args:
        function: An importable function, or a callable object that can be pickled.

    Raises:
        ValueError: It cannot be pickled, or belongs to the main script, which the child has not.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        if getattr(function, "__module__", None) == "__main__":
            raise ValueError(
                f"isolate: {name} stands in the main script; move it to a module and give its import path."
            )
        try:
            self._pickled = pickle.dumps(function)
        except Exception as error:
            raise ValueError(f"isolate: {name} cannot be imported in another process ({error}).") from error
        self._name = name
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._greeted: subprocess.Popen[bytes] | None = None  # it has been told what to call
        self._owner = os.getpid()
        self._lock = threading.Lock()  # between whoever starts and whoever kills

    def __reduce__(self) -> tuple[Any, ...]:
        return FunctionProcess, (self._function,)

    def call(self, arguments: dict[str, Any]) -> Any:
        """Call the function; ``log_metric`` and ``log_extra`` among the arguments are called here, afterwards.

        Raises:
            IsolatedFailure: It raised, or its process died or was killed.
        """
        loggers = [name for name in ("log_metric", "log_extra") if name in arguments]
        sent = {name: value for name, value in arguments.items() if name not in loggers}
        message = pickle.dumps((sent, loggers))
        process, messages = self._started(), [message]
        if process is not self._greeted:
            self._greeted = process
            messages = [pickle.dumps(sys.path), self._pickled, message]
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for one in messages:
                send(process.stdin, one)
            kind, *answer = pickle.loads(receive(process.stdout))
        except (EOFError, OSError) as error:
            status = self._ended(process)
            raise IsolatedFailure(f"the process of {self._name} {status}") from error
        if kind == "error":
            raise IsolatedFailure(answer[0]) from _Remote(answer[1])
        values, logged = answer
        for name, key, value in logged:
            arguments[name](key, value)
        return values

    def kill(self) -> None:
        """End the process, whatever it does; from any thread."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                self._process.kill()

    def close(self) -> None:
        """End the process; a later call starts another."""
        self.kill()
        if self._process is not None:
            self._ended(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._owner = os.getpid()
                command = [sys.executable, "-I", function_worker.__file__, str(self._owner)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        """Reap the process; how it ended, in words."""
        with self._lock:
            if self._process is process:
                self._process = None
        try:
            code = process.wait(1.0)  # its pipes close a moment before
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was still to be written
                    stream.close()
        return f"was ended by signal {-code}" if code < 0 else f"exited with status {code}"
