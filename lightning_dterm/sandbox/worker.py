"""The zygote: one warm, single-threaded interpreter that forks a fenced child per program.

Run by path in a bare interpreter (``python -s -S -B worker.py CONTROL_FD TRAINER_PID FOLDER``), standard library only.
It never sees a program, an argument or an answer: each request brings a socket (SCM_RIGHTS) that only the forked child
reads. It kills on the wall clock, reaps the child and whatever it left behind, and empties the scratch folder. It ends
when the trainer closes the control socket or dies by any means.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder must not shadow the standard library, nor be importable by programs

import contextlib
import gc
import importlib.util
import os
import select
import signal
import socket
import stat
import time
from types import ModuleType
from typing import Any, cast

PRELOAD = [
    "abc",
    "ast",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "enum",
    "fractions",
    "decimal",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "textwrap",
    "typing",
]
_HERE = os.path.dirname(os.path.abspath(__file__))


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, os.path.join(_HERE, f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def empty_folder(path: str) -> None:
    """Remove everything below ``path`` without following links; restores permissions a program took away."""
    pending, folders = [path], []
    while pending:
        folder = pending.pop()
        folders.append(folder)
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
    for folder in reversed(folders[1:]):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


class Zygote:
    """Serves requests on the control socket, one child at a time."""

    def __init__(self, control: socket.socket, trainer: int, folder: str) -> None:
        self.control, self.folder, self.wire = control, folder, cast(Any, _load("wire"))
        self.cwd = os.path.join(folder, "cwd")
        self.trainer = os.pidfd_open(trainer)
        if os.getppid() != trainer:
            raise SystemExit("the trainer is gone")
        guard_module, self.harness = _load("guard"), _load("harness")
        self.guard: Any = guard_module.Guard(folder)
        self.guard.adopt_orphans()

    def serve(self) -> None:
        """Answer requests until the trainer closes the socket or dies."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.trainer, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if self.trainer in ready:
                return
            data, descriptors, _, _ = socket.recv_fds(self.control, self.wire.REQUEST.size, 1)
            if not data:
                return
            kind, number, *limits = self.wire.REQUEST.unpack(data)
            if kind == b"R":  # a late stop request for a program that has ended is ignored
                with socket.socket(fileno=descriptors[0]) as connection:
                    reply = self._supervise(connection, number, *limits)
                self.control.send(reply)

    def _supervise(
        self, connection: socket.socket, number: int, cpu_s: float, wall_s: float, memory: int, output: int
    ) -> bytes:
        started = time.monotonic()
        os.makedirs(self.cwd, mode=0o700, exist_ok=True)
        zygote = os.getpid()
        try:
            child = os.fork()
        except OSError:
            return cast(bytes, self.wire.REPLY.pack(number, 0, 0.0, 0.0, 0, self.wire.NOT_STARTED))
        if child == 0:
            os.close(self.trainer)
            self.control.close()
            self.harness.child_main(connection, self.guard, zygote, (cpu_s, memory, output), self.cwd)
        connection.close()
        flags = self._watch(child, number, started + wall_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # not reaped yet, so the number is still its own
        _, status, usage = os.wait4(child, 0)
        self._reap_orphans()
        self._clean()
        wall = time.monotonic() - started
        return cast(
            bytes,
            self.wire.REPLY.pack(number, status, usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024, flags),
        )

    def _watch(self, child: int, number: int, deadline: float) -> int:
        """Wait for the child to end, killing it at the deadline, on request, or when the trainer is gone."""
        handle = os.pidfd_open(child)
        try:
            poller = select.poll()
            for descriptor in (handle, self.control.fileno(), self.trainer):
                poller.register(descriptor, select.POLLIN)
            while True:
                remaining = deadline - time.monotonic()
                ready = [descriptor for descriptor, _ in poller.poll(max(0.0, remaining * 1000))]
                if handle in ready:
                    return 0
                gone = self.trainer in ready
                if not ready or gone:
                    os.kill(child, signal.SIGKILL)
                    return int(self.wire.TIMED_OUT)
                data = self.control.recv(self.wire.REQUEST.size)
                if not data or self.wire.REQUEST.unpack(data)[1] == number:
                    os.kill(child, signal.SIGKILL)
                    return int(self.wire.STOPPED)
        finally:
            os.close(handle)

    def _reap_orphans(self) -> None:
        """Kill and reap processes the program left behind; as their subreaper they are this process's children."""
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] != 0:
                    continue
            except ChildProcessError:
                return
            for orphan in _children(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            time.sleep(0.001)

    def _clean(self) -> None:
        if os.listdir(self.folder) != ["cwd"] or os.path.islink(self.cwd) or os.listdir(self.cwd):
            empty_folder(self.folder)


def _children(parent: int) -> list[int]:
    """Processes whose parent is ``parent``, from /proc."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def _preload() -> None:
    """Import what programs commonly use, and make ``random`` start from one seed in every child.

    ``random`` asks to be reseeded after each fork, which costs more than the fork and makes verdicts depend on chance.
    """
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: None
    try:
        for name in PRELOAD:
            importlib.import_module(name)
    finally:
        os.register_at_fork = register
    sys.modules["random"].seed(0)


def main() -> None:
    """Set up, say hello with the fences that were granted, serve, clean up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; children inherit the fatal default
    trainer, folder = int(sys.argv[2]), sys.argv[3]
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise SystemExit(f"not a folder: {folder}")
    zygote = Zygote(control, trainer, folder)
    _preload()
    sys.argv[:] = [""]
    os.environ.clear()
    sys.modules["__main__"].__dict__.pop("__file__", None)
    gc.collect()
    gc.freeze()
    control.send(" ".join(zygote.guard.fences).encode() or b"-")
    try:
        zygote.serve()
    finally:
        empty_folder(folder)
        with contextlib.suppress(OSError):
            os.rmdir(folder)


if __name__ == "__main__":
    main()
