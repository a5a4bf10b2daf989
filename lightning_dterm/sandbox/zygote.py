"""The zygote: one warm, single-threaded interpreter that forks a fenced child per program.

Run by path in a bare interpreter (``python -s -S -B zygote.py CONTROL_FD JUDGE_PID FOLDER OPTIONS``), standard library
only. It never sees a program, an argument or an answer: each request brings a socket (SCM_RIGHTS) that only the forked
child reads. It kills on the wall clock, reaps the child and whatever it left behind, and empties the scratch folder. It
ends when the judge closes the control socket or dies by any means. Where the kernel grants namespaces it is process 1
of its own, under an outer process that only waits for it.
"""

from __future__ import annotations

import sys
import types
from os.path import abspath, dirname

if __name__ == "__main__":
    sys.path.pop(0)  # this folder must not shadow the standard library, nor be importable by programs
    # The package without its __init__ files, which would import what a zygote must not hold.
    for _name, _path in (("lightning_dterm", dirname(dirname(abspath(__file__)))),
                         ("lightning_dterm.sandbox", dirname(abspath(__file__)))):  # fmt: skip
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [_path]

import _socket  # not ``socket``: a tenth of the memory, which every fork copies the map of
import contextlib
import gc
import importlib
import json
import os
import re
import select
import signal
import stat
import struct
import time
from collections import deque
from typing import Any

from lightning_dterm.sandbox import harness, namespaces, wire
from lightning_dterm.sandbox.guard import Guard
from lightning_dterm.sandbox.kernel import Kernel, overspent
from lightning_dterm.sandbox.process import bury, empty_folder, open_up, remove_folder

PRELOAD = """
    abc array ast bisect cmath collections contextlib copy dataclasses datetime decimal enum faulthandler
    fractions functools heapq itertools json math numbers operator random re statistics string struct textwrap
    time traceback types typing
"""
_TICK_S = 0.05
_MAX_ENTRIES, _MAX_BYTES, _MAX_DEPTH = 2048, 16 << 20, 12  # of a scratch folder on disk, where no tmpfs bounds it
_LAST_WORDS_MS = 20
_REHEARSALS = 20
_ONE_DESCRIPTOR = _socket.CMSG_LEN(4)
_HANG = re.compile(rb'File "<program>", line (\d{1,7}) in')


def overflows(path: str) -> bool:
    """Whether a folder holds more, or deeper, than a program may write, or hides what it holds; links count as such."""
    entries = size = 0
    pending = [(path, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, depth + 1))
                    else:
                        size += entry.stat(follow_symlinks=False).st_size
                    if entries > _MAX_ENTRIES or size > _MAX_BYTES or depth > _MAX_DEPTH:
                        return True
        except PermissionError:
            return True
        except OSError:  # removed meanwhile
            continue
    return False


class Scratch:
    """The folder that a program starts in and may write to; fresh for each."""

    def __init__(self, kernel: Kernel, folder: str, plan: str | None) -> None:
        self._kernel, self._plan = kernel, plan
        self._folder = folder
        self.cwd = os.path.join(folder, "cwd") if plan is None else namespaces.CWD
        self._untouched: tuple[int, ...] = ()  # no folder is there
        self._made: os.stat_result | None = None

    def prepare(self) -> None:
        """Make it, if the last program touched it."""
        if self._plan is None:
            if self._made is None:
                os.mkdir(self.cwd, mode=0o700)
                self._made = os.lstat(self.cwd)
        elif not self._untouched:
            namespaces.mount_scratch(self._kernel, self._plan)
            self._untouched = self._look()

    def _look(self) -> tuple[int, ...]:
        """What tells a fresh folder from a used one; times alone do not, which move by a tick of the kernel's clock."""
        try:
            seen = os.stat(self.cwd)
            entries = len(os.listdir(self.cwd))
        except OSError:
            return (-1,)
        return (seen.st_ctime_ns, seen.st_mtime_ns, seen.st_mode, seen.st_nlink, seen.st_size, seen.st_uid, entries)

    def flooded(self) -> bool:
        """Whether the program wrote more than it may (a tmpfs needs no watching: it is bounded)."""
        return self._plan is None and overflows(self._folder)

    def clean(self) -> None:
        """Throw away what the program left.

        Raises:
            OSError: there is something that cannot be removed, or the folder is not the one that was made (which
                Landlock's rules are about): no other program may find it.
        """
        if self._plan is not None:
            if self._look() != self._untouched:
                namespaces.unmount_scratch(self._kernel)
                self._untouched = ()
            return
        found = os.lstat(self.cwd)
        if self._made is None or not os.path.samestat(found, self._made) or os.listdir(self._folder) != ["cwd"]:
            raise OSError(f"a program put something else in the place of {self.cwd}")
        if found.st_mode != self._made.st_mode:
            open_up(self.cwd)
        if os.listdir(self.cwd):
            empty_folder(self.cwd)
            if os.listdir(self.cwd):
                raise OSError("a program left files that cannot be removed")


class Zygote:
    """Serves requests on the control socket in their order, one child at a time."""

    def __init__(self, control: _socket.socket, judge: int, guard: Guard, scratch: Scratch, alone: bool) -> None:
        self.control, self.judge, self.guard, self.scratch = control, judge, guard, scratch
        self._alone = alone  # process 1 of its own namespace
        self._own_pid = os.getpid()
        self._spent = False  # something is left of a program that another must not find
        self._waiting: deque[tuple[Any, ...]] = deque()  # requests read while a program ran: see _watch
        self._poller = select.poll()
        self._poller.register(self.judge, select.POLLIN)
        self._idle = select.poll()
        self._idle.register(self.control, select.POLLIN)
        self._idle.register(self.judge, select.POLLIN)
        self._notes = os.memfd_create("notes")
        harness.note_hangs(self._notes)

    def serve(self) -> None:
        """Answer requests until the judge closes the socket or dies."""
        while True:
            request = self._waiting.popleft() if self._waiting else self._receive()
            while request is None:
                if any(descriptor == self.judge for descriptor, _ in self._idle.poll()):
                    return
                request = self._receive()
            if not request:
                return
            kind, connection, number, *limits = request
            if kind == b"R":  # a late stop request for a program that has ended is ignored
                reply = self._supervise(connection, number, *limits)
                self.control.send(reply)
                if self._spent:
                    self._retire()
                    return

    def _retire(self) -> None:
        """Wait for the judge to leave: closing the socket on unread requests could take the last answer along."""
        self.control.shutdown(_socket.SHUT_WR)
        while not any(descriptor == self.judge for descriptor, _ in self._idle.poll()):
            request = self._receive()
            if request == ():
                return
            if request and request[1] >= 0:
                os.close(request[1])

    def _receive(self) -> tuple[Any, ...] | None:
        """A request and the descriptor that came with it; None where there is none yet, empty at the end."""
        try:
            data, ancillary, _, _ = self.control.recvmsg(wire.REQUEST.size, _ONE_DESCRIPTOR, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not data:
            return ()
        kind, *rest = wire.REQUEST.unpack(data)
        connection = struct.unpack("i", ancillary[0][2][:4])[0] if ancillary else -1
        return (kind, connection, *rest)

    def _supervise(self, connection: int, number: int, cpu_s: float, wall_s: float, memory: int, output: int) -> bytes:
        started = time.monotonic()
        self.scratch.prepare()
        self._fresh_notes()
        try:
            child = os.fork()
        except OSError:
            os.close(connection)
            return wire.REPLY.pack(number, 0, 0.0, 0.0, 0, wire.NOT_STARTED, 0)
        if child == 0:
            os.close(self.judge)
            self.control.close()
            limits = (cpu_s, memory, output)
            harness.child_main(connection, self.guard, self._own_pid, limits, self.scratch.cwd, self._notes)
        os.close(connection)
        flags = self._watch(child, number, started + wall_s, cpu_s)
        status, cpu, peak = bury(child, self._alone)
        line = 0 if os.WIFEXITED(status) and os.WEXITSTATUS(status) != wire.NOT_FENCED else self._read_notes(status)
        try:
            self.scratch.clean()
        except OSError as error:  # our end, but no excuse for the program: its verdict stands
            os.write(2, f"{error}\n".encode("utf-8", "replace")[:500])
            self._spent, flags = True, flags | wire.SPENT
        wall = time.monotonic() - started
        return wire.REPLY.pack(number, status, cpu, wall, peak, flags, line)

    def _fresh_notes(self) -> None:
        """Nothing of an earlier program's, not even where it left off writing, under the number children expect."""
        notes = os.memfd_create("notes")
        os.dup2(notes, self._notes)
        os.close(notes)

    def _read_notes(self, status: int) -> int:
        """The line that a child hung at, 0 where it noted none; what it could not do goes to the log."""
        said = os.pread(self._notes, 4096, 0)
        if os.WIFEXITED(status):
            os.write(2, said[:500])
        hang = _HANG.search(said)
        return int(hang[1]) if hang else 0

    def _watch(self, child: int, number: int, deadline: float, cpu_s: float) -> int:
        """Wait for the child to end, killing it at its limits, on request, or when the judge is gone.

        For a first tick the control socket is left alone: whatever the judge sends ahead is not read, so that a child
        never starts with the connection of another.
        """
        handle = os.pidfd_open(child)
        poller, first = self._poller, True
        poller.register(handle, select.POLLIN)
        try:
            while True:
                remaining = max(0.0, deadline - time.monotonic())
                ready = [descriptor for descriptor, _ in poller.poll(min(remaining, _TICK_S) * 1000)]
                if handle in ready:
                    return 0
                if self.judge in ready or (not first and self._told_to_stop(number)):
                    os.kill(child, signal.SIGKILL)
                    return wire.STOPPED
                if remaining <= 0 or overspent(child, cpu_s):
                    _ask_for_last_words(handle)
                    os.kill(child, signal.SIGKILL)
                    return wire.TIMED_OUT
                if self.scratch.flooded():
                    os.kill(child, signal.SIGKILL)
                    return wire.FLOODED
                if first:
                    first = False
                    poller.register(self.control, select.POLLIN)
        finally:
            poller.unregister(handle)
            if not first:
                poller.unregister(self.control)
            os.close(handle)

    def _told_to_stop(self, number: int) -> bool:
        """Read what the judge sent meanwhile: whether to stop, because it says so or has closed the socket."""
        while True:
            request = self._receive()
            if request is None:
                return False
            if not request or (request[0] == b"K" and request[2] == number):
                return True
            if request[0] == b"R":
                self._waiting.append(request)


def _ask_for_last_words(handle: int) -> None:
    """Have the child note the line it hangs at (see ``harness``), before it is killed anyway."""
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(handle, signal.SIGPROF)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        poller.poll(_LAST_WORDS_MS)


def _preload() -> None:
    """Import what programs commonly use, and make ``random`` start from one seed in every child.

    ``random`` asks to be reseeded after each fork, which costs more than the fork and makes verdicts depend on chance.
    """
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: None
    try:
        for name in PRELOAD.split():
            importlib.import_module(name)
    finally:
        os.register_at_fork = register
    sys.modules["random"].seed(0)


def _isolate(folder: str, wanted: bool) -> tuple[Kernel, str | None, str]:
    """Enter namespaces, if wanted and possible; returns in the process that is to be the zygote."""
    kernel = Kernel()
    plan, reasons = None, "namespaces: not asked for"
    if wanted and kernel.machine:
        plan, reasons = namespaces.choose(kernel, folder)
    if plan is None:
        return kernel, None, reasons
    namespaces.enter(kernel, plan, folder)
    inner = os.fork()
    if inner == 0:
        kernel.die_with_parent()
        return kernel, plan, ""
    os.closerange(3, 1024)
    status = os.waitpid(inner, 0)[1]
    os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def main() -> None:
    """Set up, say hello with the fences that were granted, serve, clean up."""
    control = _socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; children inherit the fatal default
    parent, folder, options = int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise SystemExit(f"not a folder: {folder}")
    judge = os.pidfd_open(parent)
    if os.getppid() != parent:
        raise SystemExit("the judge is gone")
    _preload()
    kernel, plan, reasons = _isolate(folder, options["namespaces"])
    if plan is None:
        kernel.adopt_orphans()
    scratch = Scratch(kernel, folder, plan)
    scratch.prepare()  # Landlock's rules are about this very folder
    guard = Guard(kernel, namespaces.WORK if plan else scratch.cwd, plan, frozenset(options["without"]))
    sys.argv[:] = [""]
    os.environ.clear()
    sys.modules["__main__"].__dict__.pop("__file__", None)
    kernel.no_new_privileges()
    harness.rehearse(_REHEARSALS)
    for name in [name for name in sys.modules if name.startswith("lightning_dterm")]:
        del sys.modules[name]  # before any child is there, because going through them all touches hundreds of pages
    gc.collect()
    gc.freeze()
    hello = {"fences": guard.fences, "reasons": "; ".join(filter(None, [reasons, *guard.reasons]))}
    control.send(json.dumps(hello).encode())
    try:
        Zygote(control, judge, guard, scratch, plan is not None).serve()
    finally:
        if plan is None:
            remove_folder(folder)


if __name__ == "__main__":
    main()
