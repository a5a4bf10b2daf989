"""Runs one compiler or compiled program at a time inside fences, on orders from the trainer. Standard library only.

Run by path in a bare interpreter (``python -s -S launcher.py CONTROL_FD TRAINER_PID FOLDER READABLE_JSON 0|1``). It
writes the files it was given into an empty folder, starts a tiny init (in a pid namespace where the kernel grants one)
whose only child becomes the command, collects capped output, kills on the wall clock, reads back the outputs it was
asked for and empties the folder. Expected answers never come here. It ends when the trainer does.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)

import contextlib
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import stat
import struct
import time
from types import ModuleType
from typing import Any, NoReturn

LENGTH = struct.Struct("!I")
_ENDED = struct.Struct("=iddq")  # wait status, CPU seconds, wall seconds, peak bytes
_HERE = os.path.dirname(os.path.abspath(__file__))
_NOT_STARTED = 120
_DRAIN_LIMIT_S = 2.0


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, os.path.join(_HERE, f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def empty_folder(path: str) -> None:
    """Remove everything below ``path`` without following links."""
    for entry in list(os.scandir(path)):
        if entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.chmod(entry.path, 0o700)
            empty_folder(entry.path)
            with contextlib.suppress(OSError):
                os.rmdir(entry.path)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def read_back(path: str, cap: int) -> bytes | None:
    """The bytes of a regular file of its own, never through a link, a pipe or a device; None for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size > cap:
        os.close(descriptor)
        return None
    with open(descriptor, "rb") as file:
        return file.read()


def write_new(path: str, data: bytes) -> None:
    """Write a file that must not exist yet."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    with open(descriptor, "wb") as file:
        file.write(data)


class Launcher:
    """Serves orders on the control socket, one command at a time."""

    def __init__(
        self, control: socket.socket, trainer: int, folder: str, readable: list[list[str]], namespaces: bool
    ) -> None:
        self.control, self.folder = control, folder
        self.work = os.path.join(folder, "work")
        os.makedirs(self.work, mode=0o700, exist_ok=True)
        self.trainer = os.pidfd_open(trainer)
        if os.getppid() != trainer:
            raise SystemExit("the trainer is gone")
        _load("syscalls")
        self.lib: Any = _load("fence")
        self.fence = self.lib.Fence()
        self.fence.adopt_orphans()
        self.namespaces = self._enter_namespaces() if namespaces else 0
        rules = [(path, right) for path, right in readable]
        self.rulesets = {
            "tools": self.fence.ruleset([*(rule for rule in rules if rule[1] != "d"), (self.work, "w")]),
            "program": self.fence.ruleset([*rules, (self.work, "x")]),
        }
        self.fences = frozenset(name for name in ("seccomp", "landlock") if self._holds(name))

    def _enter_namespaces(self) -> int:
        """Give up the network where possible; the flags to clone each command's init with."""
        lib = self.lib
        if self.fence.machine is None:
            return 0
        uid, gid = os.geteuid(), os.getegid()
        if not self.fence.unshare(lib.CLONE_NEWNET | lib.CLONE_NEWIPC):
            if not self.fence.unshare(lib.CLONE_NEWUSER):
                return 0
            with contextlib.suppress(OSError):
                for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                    with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                        file.write(text)
            self.fence.unshare(lib.CLONE_NEWNET | lib.CLONE_NEWIPC)
        try:
            pid = self.fence.clone(lib.CLONE_NEWPID)
        except OSError:
            return 0
        if pid == 0:
            os._exit(0 if os.getpid() == 1 else 1)
        return int(lib.CLONE_NEWPID) if os.waitpid(pid, 0)[1] == 0 else 0

    def _holds(self, name: str) -> bool:
        """Whether a fence really refuses what it should, tried in a throw-away child."""
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                self.fence.enter("program", self.rulesets["program"], frozenset({name}))
                os._exit(0 if _refuses(name) else 1)
            os._exit(1)
        return os.waitpid(pid, 0)[1] == 0

    def serve(self) -> None:
        """Carry out orders until the trainer closes the socket or dies."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.trainer, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if self.trainer in ready:
                return
            order = self._receive()
            if order is None:
                return
            reply, blobs = self._carry_out(*order)
            header = json.dumps({**reply, "blobs": [-1 if blob is None else len(blob) for blob in blobs]}).encode()
            self.control.sendall(LENGTH.pack(len(header)) + header + b"".join(blob or b"" for blob in blobs))

    def _receive(self) -> tuple[dict[str, Any], list[bytes]] | None:
        head = _read(self.control, LENGTH.size)
        header = _read(self.control, LENGTH.unpack(head)[0]) if head else b""
        if not header:
            return None
        order: dict[str, Any] = json.loads(header)
        return order, [_read(self.control, size) for size in order["blobs"]]

    def _carry_out(self, order: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes | None]]:
        started = time.monotonic()
        reply: dict[str, Any] = {"status": 0, "cpu_s": 0.0, "wall_s": 0.0, "peak_rss": 0, "flags": [], "error": ""}
        output: list[bytes | None] = []
        try:
            for name, data in zip(order["files"], blobs[1:], strict=True):
                write_new(os.path.join(self.work, name), data)
            output = list(self._run(order, blobs[0], reply, started + order["wall_s"]))
            output += [read_back(os.path.join(self.work, name), order["output_cap"]) for name in order["outputs"]]
        except OSError as error:
            reply["error"] = f"{type(error).__name__}: {error}"
        finally:
            empty_folder(self.work)
        reply["wall_s"] = time.monotonic() - started
        return reply, output

    def _run(self, order: dict[str, Any], stdin: bytes, reply: dict[str, Any], deadline: float) -> list[bytes]:
        program = os.open(order["executable"].replace("{work}", self.work), os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(program, self.lib.EXEC_FD, inheritable=False)
        os.close(program)
        source = order.get("stdin_fd")
        own_input = _sealed(stdin) if source is None else -1
        out, err, errors, ended = (os.pipe() for _ in range(4))
        sink = order.get("stdout_fd")
        descriptors = (own_input if source is None else source, out[1] if sink is None else sink, err[1])
        try:
            init = self.fence.clone(self.namespaces) if self.namespaces else os.fork()
            if init == 0:
                self._init(order, descriptors, errors[1], ended[1])
        except OSError:
            for pipe in (out, err, errors, ended):
                os.close(pipe[0])
            raise
        finally:
            for descriptor in (self.lib.EXEC_FD, out[1], err[1], errors[1], ended[1], own_input, source, sink):
                if descriptor is not None and descriptor >= 0:
                    os.close(descriptor)
        collected = self._watch(init, (out[0], err[0]), order["caps"], deadline, reply["flags"])
        os.waitpid(init, 0)
        self._sweep()
        for descriptor, chunk, cap in zip((out[0], err[0]), collected, order["caps"], strict=True):
            _drain(descriptor, chunk, cap)
            os.close(descriptor)
        reply["error"] = _rest(errors[0]).decode("utf-8", "replace")
        fields = _rest(ended[0])
        if len(fields) == _ENDED.size:
            reply["status"], reply["cpu_s"], _, reply["peak_rss"] = _ENDED.unpack(fields)
        else:
            reply["status"] = int(signal.SIGKILL)
        return [bytes(chunk[:cap]) for chunk, cap in zip(collected, order["caps"], strict=True)]

    def _init(self, order: dict[str, Any], descriptors: tuple[int, int, int], errors: int, ended: int) -> NoReturn:
        """The tiny init: start the command, wait for it, report how it ended; its own end takes everyone along."""
        try:
            os.setsid()
            self.fence.die_with_parent()
            child = os.fork()
            if child == 0:
                self._become(order, descriptors, errors)
            for descriptor in (*descriptors, errors, self.lib.EXEC_FD, self.control.fileno(), self.trainer):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            while True:
                pid, status, usage = os.wait4(-1, 0)
                if pid == child:
                    break
            cpu_s = usage.ru_utime + usage.ru_stime
            os.write(ended, _ENDED.pack(status, cpu_s, 0.0, usage.ru_maxrss * 1024))
        finally:
            os._exit(0)

    def _become(self, order: dict[str, Any], descriptors: tuple[int, int, int], errors: int) -> NoReturn:
        try:
            self.fence.die_with_parent()
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
            os.chdir(self.work)
            os.umask(0o077)
            self.lib.limit(*order["limits"])
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and by whom it becomes
                signal.signal(number, signal.SIG_DFL)
            arguments = [part.replace("{work}", self.work) for part in order["arguments"]]
            environment = {name: text.replace("{work}", self.work) for name, text in order["environment"].items()}
            self.fence.enter(order["profile"], self.rulesets[order["profile"]], self.fences)
            os.execve(self.lib.EXEC_FD, arguments, environment)
        except BaseException as error:
            os.write(errors, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
            os._exit(_NOT_STARTED)

    def _watch(
        self, init: int, pipes: tuple[int, int], caps: list[int], deadline: float, flags: list[str]
    ) -> list[bytearray]:
        """Collect output until the init ends; kill it at the deadline, at the caps, or when the trainer is gone."""
        handle = os.pidfd_open(init)
        chunks = [bytearray(), bytearray()]
        poller = select.poll()
        for descriptor in (handle, *pipes, self.trainer, self.control.fileno()):
            poller.register(descriptor, select.POLLIN)
        try:
            while True:
                remaining = max(0.0, deadline - time.monotonic())
                ready = [descriptor for descriptor, _ in poller.poll(min(remaining, 3600.0) * 1000)]
                for pipe, chunk, cap in zip(pipes, chunks, caps, strict=True):
                    if pipe in ready:
                        data = os.read(pipe, 1 << 16)
                        chunk += data
                        if not data:
                            poller.unregister(pipe)
                        if len(chunk) > cap:
                            flags.append("output")
                if handle in ready:
                    return chunks
                if remaining == 0.0:
                    flags.append("wall")
                if flags or self.trainer in ready or self.control.fileno() in ready:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    with contextlib.suppress(OSError):
                        os.killpg(init, signal.SIGKILL)
                    return chunks
        finally:
            os.close(handle)

    @staticmethod
    def _sweep() -> None:
        """Kill and reap whatever the command left behind (only possible without a pid namespace)."""
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


def _refuses(fence: str) -> bool:
    """Attack the fence around this process; False where an attack works."""
    if fence == "landlock":
        attacks: list[Any] = [lambda: os.open("/etc/passwd", os.O_RDONLY), lambda: os.open("/proc/1/stat", os.O_RDONLY)]
    else:
        attacks = [socket.socket, os.fork, lambda: os.kill(os.getppid(), 0), lambda: os.execv("/bin/true", ["true"])]
    for attack in attacks:
        try:
            attack()
        except PermissionError:
            continue
        return False
    return True


def _children(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def _sealed(data: bytes) -> int:
    """A file in memory that holds ``data`` and can no longer be changed."""
    import fcntl

    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | 2)  # MFD_ALLOW_SEALING
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, 1033, 1 | 2 | 4 | 8)  # F_ADD_SEALS: seal, shrink, grow, write
    return descriptor


def _drain(pipe: int, chunk: bytearray, cap: int) -> None:
    """Read what is left in a pipe whose writers are all gone."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(OSError):
        while len(chunk) <= cap and (data := os.read(pipe, 1 << 16)):
            chunk += data


def _rest(pipe: int) -> bytes:
    chunk = bytearray()
    _drain(pipe, chunk, 4096)
    os.close(pipe)
    return bytes(chunk)


def _read(control: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = control.recv(min(missing, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def main() -> None:
    """Set up, say hello with the fences that hold, serve, clean up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for descriptor in range(3, 1024):  # what the trainer passed on is for this process only
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)
    folder = sys.argv[3]
    launcher = Launcher(control, int(sys.argv[2]), folder, json.loads(sys.argv[4]), sys.argv[5] == "1")
    gc.freeze()
    hello = [*sorted(launcher.fences), *(["pidns"] if launcher.namespaces else [])]
    control.sendall((" ".join(hello) + "\n").encode())
    try:
        launcher.serve()
    finally:
        empty_folder(folder)
        os.rmdir(folder)


if __name__ == "__main__":
    main()
