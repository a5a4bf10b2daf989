"""Travels as text into a sandboxed process and runs only there: a whole program on standard input and output.

Standard library only. What it returns are the bytes that the program wrote: a claim, like any value.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import io
import os
import signal
import sys
import threading
import types
from typing import NoReturn


class Left(BaseException):
    """Unwinds a program that has called ``os._exit(0)``."""


def run_text(source: str, stdin: bytes) -> bytes:
    """Run ``source`` as the main program, as an interpreter of its own would; gives what it wrote.

    Raises:
        RuntimeError: it ended with an exit code other than 0. Whatever else it raised passes through.
    """
    code = compile(source, "<program>", "exec", dont_inherit=True)
    kept = _redirect(stdin)
    left = _leave_by_unwinding(kept)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # made by site, which is not here
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv[:] = ["program.py"]
    try:
        _run(code, main)
    except BaseException:  # after os._exit(0) whatever else went on in the process does not count
        if not left:
            raise
    return left[0] if left else _written(kept)


def _run(code: types.CodeType, main: types.ModuleType) -> None:
    """To the end of the program and of its threads, and all that it wrote out of buffers."""
    try:
        exec(code, main.__dict__)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise RuntimeError(f"exit code {leaving.code!r}"[:200]) from None
    for thread in threading.enumerate():  # a program may leave its work to a thread and fall off its own end
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
    main.__dict__.clear()  # files of the program's own on descriptor 1 are flushed when they go
    gc.collect()


def _written(kept: int) -> bytes:
    size = os.fstat(kept).st_size
    return b"".join(os.pread(kept, 1 << 20, place) for place in range(0, size, 1 << 20))


def _leave_by_unwinding(kept: int) -> list[bytes]:
    """Replace ``os._exit``, behind which nothing could be told: for 0, what was written by then goes into the list."""
    left: list[bytes] = []
    really, main = os._exit, threading.main_thread()

    def _exit(status: int) -> NoReturn:
        if status != 0:
            really(status)
        if not left:
            left.append(_written(kept))
        if threading.current_thread() is not main and main.ident is not None:
            with contextlib.suppress(OSError):
                signal.pthread_kill(main.ident, signal.SIGINT)  # it leaves too, whatever it waits for
        raise Left

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os._exit = _exit
    return left


def _redirect(stdin: bytes) -> int:
    """Put files behind descriptors 0 and 1, and text streams upon them; gives another descriptor of the output."""
    with open("stdin", "wb") as file:
        file.write(stdin)
    given, taken = os.open("stdin", os.O_RDONLY), os.open("stdout", os.O_RDWR | os.O_CREAT, 0o600)
    os.dup2(given, 0)
    os.dup2(taken, 1)
    os.close(given)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")  # type: ignore[misc]  # noqa: SIM115
    return taken
