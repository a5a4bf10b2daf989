"""Travels as text into a sandboxed process and runs only there: a whole program on standard input and output.

Standard library only. What it returns are the bytes that the program wrote: a claim, like any value.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
import types


def run_text(source: str, stdin: bytes) -> bytes:
    """Run ``source`` as the main program, as an interpreter of its own would; gives what it wrote.

    Raises:
        RuntimeError: it ended with an exit code other than 0. Whatever else it raised passes through.
    """
    code = compile(source, "<program>", "exec", dont_inherit=True)
    kept = _redirect(stdin)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv[:] = ["program.py"]
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
    os.lseek(kept, 0, os.SEEK_SET)
    return b"".join(iter(lambda: os.read(kept, 1 << 20), b""))


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
