"""The trainer's end of a launcher: orders out, endings back. Starts by exec, never forks the trainer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_dterm.sandbox.languages.launcher import LENGTH

_LAUNCHER = Path(__file__).with_name("launcher.py")
_START_TIMEOUT_S = 60.0
_ANSWER_GRACE_S = 20.0
_MAX_REPLY = 512 << 20
FENCES = frozenset({"seccomp", "landlock"})
# What every dynamically linked program may read; ``x`` also execute (the loader itself), ``n`` the null device,
# ``d`` devices for programs, not for compilers (which would include them as endless files).
BASE_RULES: tuple[tuple[str, str], ...] = (
    ("/lib", "x"), ("/lib64", "x"), ("/usr/lib", "x"), ("/usr/lib64", "x"), ("/etc/ld.so.cache", "r"),
    ("/dev/null", "n"), ("/dev/urandom", "d"), ("/dev/random", "d"), ("/usr/share/zoneinfo", "r"),
    ("/etc/localtime", "r"),
)  # fmt: skip


class LauncherUnavailable(RuntimeError):
    """Programs cannot be run with the isolation asked for."""


class LauncherLost(Exception):
    """The launcher stopped answering: our fault, to be retried."""


@dataclass(frozen=True, slots=True)
class Command:
    """One compiler or program to run.

    Attributes:
        executable: Absolute path; ``{work}`` stands for the command's own folder here and in the next two.
        arguments: The whole argument vector.
        environment: The whole environment.
        profile: ``program`` (one exec, threads, reads its folder) or ``tools`` (processes, writes its folder).
        files: Names and contents, put into the folder beforehand.
        stdin: Standard input.
        outputs: Names of files to read back.
        cpu_s / wall_s: Limits in seconds.
        memory_mb: Address space in MiB, 0 for none.
        data_mb: Private writable memory in MiB, 0 for none (what runtimes that reserve address space can live with).
        file_kb: Size limit of any file written, in KiB.
        stdout_kb / stderr_kb: Output in KiB beyond which the command is killed.
        stack_mb: Main stack in MiB.
        descriptors: Open files at once.
    """

    executable: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    profile: Literal["program", "tools"] = "program"
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    outputs: tuple[str, ...] = ()
    cpu_s: float = 10.0
    wall_s: float = 30.0
    memory_mb: int = 0
    data_mb: int = 0
    file_kb: int = 65536
    stdout_kb: int = 64
    stderr_kb: int = 64
    stack_mb: int = 8
    descriptors: int = 64


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        wait_status: As ``os.wait`` gives it.
        cpu_s / wall_s / peak_rss: Usage; seconds, seconds, bytes.
        flags: ``wall`` (killed at the wall clock), ``output`` (killed for writing too much).
        error: Why it could not be started; empty where it was.
        stdout / stderr: What it wrote, cut at the limits.
        outputs: The files asked for; None for one that is missing, too large, a link or no regular file.
    """

    wait_status: int
    cpu_s: float
    wall_s: float
    peak_rss: int
    flags: tuple[str, ...]
    error: str
    stdout: bytes
    stderr: bytes
    outputs: tuple[bytes | None, ...]

    @property
    def signal(self) -> int:
        """The signal that ended it, 0 for none."""
        return os.WTERMSIG(self.wait_status) if os.WIFSIGNALED(self.wait_status) else 0

    @property
    def code(self) -> int | None:
        """Its exit code; None where a signal ended it."""
        return os.WEXITSTATUS(self.wait_status) if os.WIFEXITED(self.wait_status) else None


class Launcher:
    """One launcher process, started on first use; not thread-safe.

    Args:
        readable: (path, rights) that commands may read besides :data:`BASE_RULES`.
        required: Fences that must hold.
        pass_fds: Descriptors to hand on, for a service's standard streams.
        namespaces: Use namespaces where the kernel grants them; they are a second line, so their lack is no error.

    Raises:
        LauncherUnavailable: not Linux.
    """

    def __init__(
        self,
        readable: Sequence[tuple[str, str]] = (),
        required: frozenset[str] = FENCES,
        pass_fds: Sequence[int] = (),
        namespaces: bool = True,
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise LauncherUnavailable(
                f"Compilers and compiled programs can be isolated on Linux only, not on {sys.platform}: use a Linux "
                "container, VM or WSL 2."
            )
        self.readable, self.required, self.pass_fds = tuple(readable), required, tuple(pass_fds)
        self.namespaces = namespaces
        self.granted: frozenset[str] = frozenset()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._folder = ""
        self._owner = 0

    @property
    def level(self) -> str:
        """Isolation in force, a label of :class:`lightning_dterm.sandbox.Level`; known once started.

        Never ``namespaces``: there is no mount namespace here, programs cannot write at all.
        """
        if "seccomp" not in self.granted:
            return "process"
        return "kernel" if "landlock" in self.granted else "syscalls"

    def run(self, command: Command) -> Ended:
        """Run one command to its end.

        Raises:
            LauncherLost: the launcher died or did not answer; it is closed and starts anew at the next call.
            LauncherUnavailable: it cannot start, or a required fence does not hold.
        """
        self.start()
        try:
            self.send(command)
            return self.receive(command.wall_s + _ANSWER_GRACE_S)
        except (OSError, ValueError) as error:
            self.close()
            raise LauncherLost(f"launcher lost: {type(error).__name__}: {error}") from error

    def send(self, command: Command, stdin_fd: int | None = None, stdout_fd: int | None = None) -> None:
        """Give one order; ``stdin_fd`` and ``stdout_fd`` are among ``pass_fds``, for a service."""
        assert self._control is not None
        contents = [command.stdin, *command.files.values()]
        order: dict[str, Any] = {
            "executable": command.executable, "arguments": command.arguments, "profile": command.profile,
            "environment": dict(command.environment), "files": list(command.files), "outputs": command.outputs,
            "limits": [
                command.cpu_s, command.memory_mb << 20, command.data_mb << 20, command.file_kb << 10,
                command.descriptors, command.stack_mb << 20,
            ],
            "wall_s": command.wall_s, "caps": [command.stdout_kb << 10, command.stderr_kb << 10],
            "output_cap": command.file_kb << 10, "blobs": [len(data) for data in contents],
            "stdin_fd": stdin_fd, "stdout_fd": stdout_fd,
        }  # fmt: skip
        header = json.dumps(order).encode()
        self._control.settimeout(_ANSWER_GRACE_S)
        self._control.sendall(LENGTH.pack(len(header)) + header + b"".join(contents))

    def receive(self, timeout_s: float) -> Ended:
        """Wait for the answer to the last order."""
        assert self._control is not None
        self._control.settimeout(timeout_s)
        header = json.loads(self._read(LENGTH.unpack(self._read(LENGTH.size))[0]))
        blobs = [None if size < 0 else self._read(size) for size in header["blobs"]]
        blobs += [b""] * (2 - len(blobs))
        return Ended(
            header["status"], header["cpu_s"], header["wall_s"], header["peak_rss"], tuple(header["flags"]),
            header["error"], blobs[0] or b"", blobs[1] or b"", tuple(blobs[2:]),
        )  # fmt: skip

    def _read(self, size: int) -> bytes:
        assert self._control is not None
        if size > _MAX_REPLY:
            raise ValueError("reply too large")
        parts, missing = [], size
        while missing:
            part = self._control.recv(min(missing, 1 << 20))
            if not part:
                raise ValueError("it closed its socket")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def start(self) -> None:
        """Start the process unless it runs; in a forked copy of the trainer start another one.

        Raises:
            LauncherUnavailable: it does not start, or a required fence does not hold.
        """
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self.close()
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="lightning-dterm-exec-")
        command = [sys.executable, "-s", "-S", "-B", "-W", "ignore", str(_LAUNCHER), str(theirs.fileno())]
        command += [
            str(os.getpid()),
            self._folder,
            json.dumps([*BASE_RULES, *self.readable]),
            str(int(self.namespaces)),
        ]
        with theirs, tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, cwd="/",
                env={"LC_ALL": "C.UTF-8", "PATH": os.defpath}, pass_fds=(theirs.fileno(), *self.pass_fds),
                start_new_session=True,
            )  # fmt: skip
            theirs.close()
            self._control, self._owner = ours, os.getpid()
            hello = self._hello()
            log.seek(0)
            words = log.read()[-500:].decode("utf-8", "replace").strip()
        if hello is None:
            self.close()
            raise LauncherUnavailable(f"The launcher of compilers and programs did not start: {words or 'no message'}")
        self.granted = frozenset(hello)
        if missing := sorted(self.required - self.granted):
            self.close()
            raise LauncherUnavailable(
                f"This kernel or container does not grant {', '.join(missing)}, so compilers and programs written by "
                "the model could harm this machine. Run on Linux >= 5.13 (x86_64 or aarch64) with Landlock enabled, or "
                f"accept the weaker isolation with allow_missing={tuple(missing)!r}."
            )

    def _hello(self) -> list[str] | None:
        assert self._control is not None
        self._control.settimeout(_START_TIMEOUT_S)
        line = b""
        with contextlib.suppress(OSError):
            while not line.endswith(b"\n"):
                byte = self._control.recv(1)
                if not byte:
                    return None
                line += byte
            return line.decode("ascii").split()
        return None

    def close(self) -> None:
        """End the process with everything it runs and remove its folder; a forked copy only drops its handles."""
        process, control = self._process, self._control
        self._process = self._control = None
        if control is not None:
            control.close()
        if process is None:
            return
        if self._owner != os.getpid():
            process.returncode = 0  # not our child: keep Popen's finalizer quiet
            return
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
