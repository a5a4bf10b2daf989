"""The child process that calls one reward function: arguments in, values out. It imports nothing of the package.

Messages are pickles behind their length, on descriptors of their own: what the function prints goes to standard error.
First come ``sys.path`` and then the pickled function, then one message a call: the keyword arguments, and the names of
those that log. The answer to a call is ``("values", values, logged)`` or ``("error", "Type: message", traceback)``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

SIZE = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one message."""
    stream.write(SIZE.pack(len(message)) + message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    head = stream.read(SIZE.size)
    if len(head) < SIZE.size:
        raise EOFError
    body = stream.read(SIZE.unpack(head)[0])
    if len(body) < SIZE.unpack(head)[0]:
        raise EOFError
    return body


def call(function: Callable[..., Any], message: bytes, loop: asyncio.AbstractEventLoop) -> tuple[Any, ...]:
    """One call and its answer."""
    arguments, loggers = pickle.loads(message)
    logged: list[tuple[str, str, Any]] = []

    def log_metric(name: str, value: float) -> None:
        logged.append(("log_metric", name, value))

    def log_extra(column: str, values: Any) -> None:
        logged.append(("log_extra", column, values))

    own = {"log_metric": log_metric, "log_extra": log_extra}
    values = function(**arguments, **{name: own[name] for name in loggers})
    if hasattr(values, "__await__"):
        values = loop.run_until_complete(_await(values))
    if hasattr(values, "__iter__") and not isinstance(values, (str, bytes, Mapping)):
        values = list(values)
    return "values", values, logged


async def _await(awaitable: Any) -> Any:
    return await awaitable


def main() -> None:
    """Serve until the other side closes. Argument: the parent's process id."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a function that hangs must not outlive the run
    if os.getppid() != int(sys.argv[1]):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    loop = asyncio.new_event_loop()
    try:
        sys.path[:] = pickle.loads(receive(reader))
        source: bytes | None = receive(reader)
        function: Any = None
        while True:
            message = receive(reader)
            try:
                if source is not None:
                    function, source = pickle.loads(source), None
                answer = pickle.dumps(call(function, message, loop))
            except BaseException as error:  # sys.exit() of a reward is a failure of it, too
                answer = pickle.dumps(("error", f"{type(error).__name__}: {error}", traceback.format_exc()))
            send(writer, answer)
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
