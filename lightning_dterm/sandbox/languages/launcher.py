"""Runs one compiler or compiled program at a time inside fences, on orders from the trainer. Standard library only.

Run by path in a bare interpreter (``python -s -S -B launcher.py CONTROL_FD TRAINER_PID FOLDER OPTIONS``). It writes the
files it was given into an empty folder, forks the command, collects capped output, kills on the wall clock, reads back
the outputs it was asked for and empties the folder. Expected answers never come here. Where the kernel grants
namespaces it is process 1 of its own, in a file tree that holds the toolchains and nothing else. A guardian outside
waits for it and removes the folder, and, where the trainer died, the trainer's own folders too.
"""

from __future__ import annotations

import sys
import types
from os.path import abspath, dirname

if __name__ == "__main__":
    sys.path.pop(0)
    # The package without its __init__ files, which would import the trainer's libraries.
    _HERE = dirname(abspath(__file__))
    for _name, _path in (("lightning_dterm", dirname(dirname(_HERE))), ("lightning_dterm.sandbox", dirname(_HERE)),
                         ("lightning_dterm.sandbox.languages", _HERE)):  # fmt: skip
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [_path]

import contextlib
import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import time
from typing import Any, NoReturn

from lightning_dterm.sandbox import namespaces
from lightning_dterm.sandbox.guard import Fence, can_leave_root
from lightning_dterm.sandbox.kernel import (
    EXECUTE,
    READ_DIR,
    READ_FILE,
    WRITE_FILE,
    Kernel,
    become,
    counts_processes_alone,
    overspent,
    set_limits,
)
from lightning_dterm.sandbox.process import (
    bury,
    drain,
    empty_folder,
    read_back,
    read_exactly,
    remove_folder,
    write_new,
)
from lightning_dterm.sandbox.seccomp import (
    EXEC_FD,
    PROGRAM_CALLS,
    TOOLS_CALLS,
    build_filter,
    program_checks,
    tools_checks,
)

LENGTH = struct.Struct("!I")
GOODBYE = LENGTH.pack(0)
_NOT_STARTED, _LOST = 120, 3
_NO_PROGRAM = (errno.ENOEXEC, errno.EINVAL, errno.ELIBBAD)
_TRAINER_ENDS_S = 5.0
_CPU_CHECK_S = 1.0
_MAX_PROCESSES = 256
_RIGHTS = {
    "r": READ_FILE | READ_DIR, "x": READ_FILE | READ_DIR | EXECUTE, "n": READ_FILE | WRITE_FILE, "d": READ_FILE,
}  # fmt: skip
_STREAMS = [(f"/dev/{name}", f"/proc/self/fd/{i}") for i, name in enumerate(("stdin", "stdout", "stderr"))]
_TOP_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


class Launcher:
    """Serves orders on the control socket, one command at a time.

    Args:
        control: The socket to the trainer.
        trainer: A pidfd of it.
        kernel: The system calls.
        work: The folder that commands start in.
        readable: (path, rights) as in :data:`_RIGHTS`.
        plan: The namespaces it lives in, None for none.
    """

    def __init__(
        self,
        control: socket.socket,
        trainer: int,
        kernel: Kernel,
        work: str,
        readable: list[tuple[str, str]],
        plan: str | None,
    ) -> None:
        self.control, self.trainer, self.kernel, self.work, self.plan = control, trainer, kernel, work, plan
        if plan is None:
            kernel.adopt_orphans()
        needed = [path for path, _ in readable if os.path.exists(path)]
        self._leaves_root = plan == "root" or (plan is None and can_leave_root(kernel, needed, os.path.dirname(work)))
        self._owner = kernel.spare_user if self._leaves_root else None
        if self._owner is not None:
            os.chown(work, self._owner, self._owner)
        rules = [(path, _RIGHTS[right]) for path, right in readable]
        everything = kernel.file_rights
        # A compiler would include a device as an endless file; it writes to its folder, and programs only read theirs.
        tools = [rule for rule, (_, right) in zip(rules, readable, strict=True) if right != "d"]
        machine = kernel.machine
        self.profiles = {
            "tools": Fence(
                kernel, build_filter(machine, TOOLS_CALLS, checks=tools_checks()) if machine else b"",
                [*tools, (work, everything & ~EXECUTE)],
            ),
            "program": Fence(
                kernel, build_filter(machine, PROGRAM_CALLS, checks=program_checks()) if machine else b"",
                [*rules, (work, _RIGHTS["x"])], attack=_refuses,
            ),
        }  # fmt: skip
        both = [frozenset(fence.names) for fence in self.profiles.values()]
        apart = kernel.has_spare_user and (self._leaves_root or (plan == "user" and os.geteuid() == kernel.spare_user))
        self.held = both[0] & both[1]
        self.fences = self.held | frozenset(namespaces.fences_of(plan)) | ({"uid"} if apart else frozenset())
        self._processes = _MAX_PROCESSES if apart or (plan == "user" and counts_processes_alone()) else None

    def serve(self) -> bool:
        """Carry out orders until the trainer says goodbye (True), closes the socket or dies (False)."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.trainer, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if self.trainer in ready:
                return False
            head = read_exactly(self.control, LENGTH.size)
            if not head or head == GOODBYE:
                return head == GOODBYE
            order: dict[str, Any] = json.loads(read_exactly(self.control, LENGTH.unpack(head)[0]) or b"{}")
            if not order:
                return False
            blobs = [read_exactly(self.control, size) for size in order["blobs"]]
            reply, output = self._carry_out(order, blobs)
            header = json.dumps({**reply, "blobs": [-1 if blob is None else len(blob) for blob in output]}).encode()
            self.control.sendall(LENGTH.pack(len(header)) + header + b"".join(blob or b"" for blob in output))

    def _carry_out(self, order: dict[str, Any], blobs: list[bytes]) -> tuple[dict[str, Any], list[bytes | None]]:
        started = time.monotonic()
        reply: dict[str, Any] = {"status": 0, "cpu_s": 0.0, "wall_s": 0.0, "peak_rss": 0, "flags": [], "error": ""}
        output: list[bytes | None] = []
        try:
            for name, data in zip(order["files"], blobs[1:], strict=True):
                write_new(os.path.join(self.work, name), data, self._owner)
            output = list(self._run(order, blobs[0], reply, started + order["wall_s"]))
            output += [read_back(os.path.join(self.work, name), order["output_cap"]) for name in order["outputs"]]
        except OSError as error:
            reply["error"] = f"{type(error).__name__}: {error}"
        finally:
            empty_folder(self.work)
        reply["wall_s"] = time.monotonic() - started
        return reply, output

    def _run(self, order: dict[str, Any], stdin: bytes, reply: dict[str, Any], deadline: float) -> list[bytes]:
        executable = order["executable"].replace("{work}", self.work)
        program = os.open(executable, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(program, EXEC_FD, inheritable=False)
        os.close(program)
        source, sink = order.get("stdin_fd"), order.get("stdout_fd")
        source = _sealed(stdin) if source is None else source
        out, err, errors = (os.pipe() for _ in range(3))
        if self._owner is not None:  # or /dev/stdout would be closed to whom it belongs
            os.fchown(out[1], self._owner, self._owner)
            os.fchown(err[1], self._owner, self._owner)
        parent = os.getpid()
        try:
            child = os.fork()
            if child == 0:
                self._become(order, executable, parent, (source, out[1] if sink is None else sink, err[1]), errors[1])
        except OSError:
            for pipe in (out, err, errors):
                os.close(pipe[0])
            raise
        finally:
            for descriptor in (EXEC_FD, out[1], err[1], errors[1], source, sink):
                if descriptor is not None:
                    os.close(descriptor)
        collected = self._watch(child, (out[0], err[0]), order, deadline, reply["flags"])
        reply["status"], reply["cpu_s"], reply["peak_rss"] = bury(child, self.plan is not None)
        for descriptor, chunk, cap in zip((out[0], err[0]), collected, order["caps"], strict=True):
            drain(descriptor, chunk, cap)
        words = bytearray()
        drain(errors[0], words, 4096)
        reply["error"] = words.decode("utf-8", "replace")
        return [bytes(chunk[:cap]) for chunk, cap in zip(collected, order["caps"], strict=True)]

    def _become(
        self, order: dict[str, Any], executable: str, parent: int, descriptors: tuple[int, int, int], errors: int
    ) -> NoReturn:
        try:
            os.setsid()
            self.kernel.die_with_parent()
            if os.getppid() != parent:
                os._exit(0)
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
            os.chdir(self.work)
            os.umask(0o077)
            cpu_s, memory, data, file_size, files, stack = order["limits"]
            set_limits(cpu_s, memory, file_size, files, self._processes, data, stack)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and by whom it becomes
                signal.signal(number, signal.SIG_DFL)
            arguments = [part.replace("{work}", self.work) for part in order["arguments"]]
            environment = {name: text.replace("{work}", self.work) for name, text in order["environment"].items()}
            if self._owner is not None:
                become(self._owner)
                self.kernel.die_with_parent()  # a change of uid clears it
            own = [("/proc/self", READ_FILE | READ_DIR)] if order["own_proc"] else []
            self.profiles[order["profile"]].close_in(self.held, own)
            # A program becomes what was opened, once; tools may be scripts, and find their parts by their path.
            os.execve(executable if order["profile"] == "tools" else EXEC_FD, arguments, environment)
        except BaseException as error:
            if isinstance(error, OSError) and executable.startswith(self.work) and error.errno in _NO_PROGRAM:
                os.write(2, f"cannot be executed: {error}\n".encode("utf-8", "replace"))
                os.abort()  # its own doing: ``section(".interp")`` in a C source is enough
            os.write(errors, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
        finally:
            os._exit(_NOT_STARTED)

    def _watch(
        self, child: int, pipes: tuple[int, int], order: dict[str, Any], deadline: float, flags: list[str]
    ) -> list[bytearray]:
        """Collect output until the command ends; kill it at its limits, or when the trainer is gone."""
        caps, cpu_s = order["caps"], order["limits"][0]
        handle = os.pidfd_open(child)
        chunks = [bytearray(), bytearray()]
        poller = select.poll()
        for descriptor in (handle, *pipes, self.trainer, self.control.fileno()):
            poller.register(descriptor, select.POLLIN)
        try:
            while True:
                remaining = max(0.0, deadline - time.monotonic())
                ready = [descriptor for descriptor, _ in poller.poll(min(remaining, _CPU_CHECK_S) * 1000)]
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
                elif overspent(child, cpu_s):
                    flags.append("cpu")
                if flags or self.trainer in ready or self.control.fileno() in ready:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    return chunks
        finally:
            os.close(handle)


def _refuses(fence: str) -> bool:
    """Attack the fence around this process; False where an attack works."""
    if fence == "landlock":
        return not any(_opens(path) for path in ("/etc/passwd", "/proc/1/stat", "/"))
    for attack in (socket.socket, os.fork, lambda: os.kill(os.getppid(), 0), lambda: os.execv("/bin/true", ["true"])):
        try:
            attack()
        except PermissionError:
            continue
        return False
    return True


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _sealed(data: bytes) -> int:
    """A file in memory that holds ``data`` and can no longer be changed."""
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | 2)  # MFD_ALLOW_SEALING
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, 1033, 1 | 2 | 4 | 8)  # F_ADD_SEALS: seal, shrink, grow, write
    return descriptor


def _tree(readable: list[tuple[str, str]], work: str) -> namespaces.Tree:
    links = [path for path in _TOP_LINKS if os.path.islink(path)]
    return namespaces.Tree([path for path, _ in readable], [work], links=links, made=_STREAMS, proc=True)


def _serve(control: socket.socket, trainer: int, folder: str, options: dict[str, Any]) -> NoReturn:
    """In the guardian's child: enter namespaces where there are some, say hello, serve."""
    kernel = Kernel()
    kernel.die_with_parent()
    kernel.offer_to_the_oom_killer()
    work, root = os.path.join(folder, "work"), os.path.join(folder, "root")
    os.mkdir(work, 0o700)
    os.mkdir(root, 0o700)
    readable = [(path, right) for path, right in options["readable"]]
    plan, reasons = None, "namespaces: not asked for"
    if options["namespaces"] and kernel.machine:
        tree = _tree(readable, work)
        plan, reasons = namespaces.choose(kernel, root, tree)
        if plan is not None:
            if os.geteuid() == 0 and plan == "user":
                os.chown(work, kernel.spare_user, kernel.spare_user)
            namespaces.enter(kernel, plan, root, tree)
            kernel.die_with_parent()
            inner = os.fork()
            if inner != 0:
                os.closerange(3, 1024)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0x7F)
            kernel.die_with_parent()
            namespaces.cover_proc(kernel)
    launcher = Launcher(control, trainer, kernel, work, readable, plan)
    said = [reasons, *(reason for fence in launcher.profiles.values() for reason in fence.reasons)]
    gc.freeze()
    hello = json.dumps({"fences": sorted(launcher.fences), "reasons": "; ".join(filter(None, said))}).encode()
    control.sendall(LENGTH.pack(len(hello)) + hello)
    os._exit(0 if launcher.serve() else _LOST)


def _trainer_ends(trainer: int, control: socket.socket) -> bool:
    """Wait for the end of the trainer behind what served it; False where it said goodbye first, or lives on."""
    control.setblocking(False)
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_WR)  # so that the trainer notices; what it still says can be read
    poller = select.poll()
    poller.register(trainer, select.POLLIN)
    poller.register(control, select.POLLIN)
    deadline, said = time.monotonic() + _TRAINER_ENDS_S, b""
    while ready := [descriptor for descriptor, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)]:
        if trainer in ready:
            return True
        with contextlib.suppress(OSError):
            if part := control.recv(1 << 16):
                said = (said + part)[-LENGTH.size :]
                continue
        if said == GOODBYE:  # the last word before it closed the socket
            return False
        poller.unregister(control)  # closed by its end, then, of which the kernel tells in a moment
    return False


def main() -> None:
    """Start what serves, wait for it, clean up behind it and behind a trainer that died."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for descriptor in range(3, 1024):  # what the trainer passed on is for this process only
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)
    parent, folder, options = int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    trainer = os.pidfd_open(parent)
    if os.getppid() != parent:
        raise SystemExit("the trainer is gone")
    child = os.fork()
    if child == 0:
        try:
            _serve(control, trainer, folder, options)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
        finally:
            os._exit(1)
    for descriptor in range(3, 1024):
        if descriptor not in (trainer, control.fileno()):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    remove_folder(folder)
    if code != 0 and _trainer_ends(trainer, control):
        for path in options["leftovers"]:
            remove_folder(path)


if __name__ == "__main__":
    main()
