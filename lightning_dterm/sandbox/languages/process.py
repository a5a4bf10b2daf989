"""The trainer's end of a launcher: orders out, endings back. Starts by exec, never forks the trainer."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightning_dterm.sandbox.judge import OOM_SHARE
from lightning_dterm.sandbox.languages.launcher import GOODBYE, LENGTH
from lightning_dterm.sandbox.levels import FENCES as REMEDIES
from lightning_dterm.sandbox.levels import level_of
from lightning_dterm.sandbox.process import read_exactly
from lightning_dterm.sandbox.slot import SandboxUnavailable
from lightning_dterm.sandbox.spawn import Worker

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


class LauncherUnavailable(SandboxUnavailable):
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
        own_proc: Let it read the folder of its own process in /proc, and no other's.
        wait_status: The wait status of whichever part of it a driver's ending tells of; default: its own.
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
    own_proc: bool = False
    wait_status: Callable[[Ended], int] | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        wait_status: As ``os.wait`` gives it.
        cpu_s / wall_s / peak_rss: Usage; seconds, seconds, bytes.
        flags: Why it was killed: ``wall`` (the wall clock), ``cpu``, ``output`` (it wrote too much), ``memory`` (by the
            kernel, when it held nearly all that it may), ``outside`` (by somebody else, not for anything it did).
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

    def limit(self, cpu_s: float) -> Literal["output", "timeout", "memory"] | None:
        """The limit that ended it, ``cpu_s`` being that of its CPU seconds; None where it went on to its own end."""
        if "output" in self.flags or self.signal == signal.SIGXFSZ:
            return "output"
        if {"wall", "cpu"} & set(self.flags) or self.signal == signal.SIGXCPU or self.cpu_s >= cpu_s:
            return "timeout"
        return "memory" if "memory" in self.flags else None


class Launcher:
    """One launcher process, started on first use; not thread-safe.

    Args:
        readable: (path, rights) that commands may read besides :data:`BASE_RULES`. Where there is a mount namespace,
            nothing else exists for them, and a command's executable must lie below one of them.
        required: Fences that must hold.
        pass_fds: Descriptors to hand on, for a service's standard streams.
        namespaces: Use namespaces where the kernel grants them; they are a second line, so their lack is no error.
        leftovers: Folders of the owner that the launcher removes if the owner is killed.

    Attributes:
        granted: Fences that hold, once started.
        reasons: What the kernel said of others.

    Raises:
        LauncherUnavailable: not Linux.
    """

    def __init__(
        self,
        readable: Sequence[tuple[str, str]] = (),
        required: frozenset[str] = FENCES,
        pass_fds: Sequence[int] = (),
        namespaces: bool = True,
        leftovers: Sequence[str] = (),
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise LauncherUnavailable(
                f"Compilers and compiled programs can be isolated on Linux only, not on {sys.platform}: use a Linux "
                "container, VM or WSL 2."
            )
        self.readable, self.required, self.pass_fds = tuple(readable), required, tuple(pass_fds)
        self.namespaces, self.leftovers = namespaces, tuple(leftovers)
        self.granted: frozenset[str] = frozenset()
        self.reasons = ""
        self._worker: Worker | None = None

    @property
    def level(self) -> str:
        """Isolation in force, a label of :class:`lightning_dterm.sandbox.Level`; known once started."""
        return level_of(self.granted).label

    def run(self, command: Command) -> Ended:
        """Run one command to its end.

        Raises:
            LauncherLost: the launcher died or did not answer; it is closed and starts anew at the next call.
            LauncherUnavailable: it cannot start, or a required fence does not hold.
        """
        self.start()
        try:
            self.send(command)
            ended = self.receive(command.wall_s + _ANSWER_GRACE_S)
        except (OSError, ValueError) as error:
            self.close()
            raise LauncherLost(f"launcher lost: {type(error).__name__}: {error}") from error
        return explained(ended, command) if "seccomp" in self.granted else ended

    def send(self, command: Command, stdin_fd: int | None = None, stdout_fd: int | None = None) -> None:
        """Give one order; ``stdin_fd`` and ``stdout_fd`` are among ``pass_fds``, for a service."""
        assert self._worker is not None
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
            "own_proc": command.own_proc, "stdin_fd": stdin_fd, "stdout_fd": stdout_fd,
        }  # fmt: skip
        header = json.dumps(order).encode()
        control = self._worker.control
        control.settimeout(_ANSWER_GRACE_S)
        control.sendall(LENGTH.pack(len(header)) + header + b"".join(contents))

    def receive(self, timeout_s: float) -> Ended:
        """Wait for the answer to the last order."""
        assert self._worker is not None
        self._worker.control.settimeout(timeout_s)
        header = json.loads(self._message())
        blobs = [None if size < 0 else self._read(size) for size in header["blobs"]]
        blobs += [b""] * (2 - len(blobs))
        return Ended(
            header["status"], header["cpu_s"], header["wall_s"], header["peak_rss"], tuple(header["flags"]),
            header["error"], blobs[0] or b"", blobs[1] or b"", tuple(blobs[2:]),
        )  # fmt: skip

    def _message(self) -> bytes:
        return self._read(LENGTH.unpack(self._read(LENGTH.size))[0])

    def _read(self, size: int) -> bytes:
        assert self._worker is not None
        if size > _MAX_REPLY:
            raise ValueError("reply too large")
        data = read_exactly(self._worker.control, size)
        if size and not data:
            raise ValueError("it closed its socket")
        return data

    def start(self) -> None:
        """Start the process unless it runs; in a forked copy of the trainer start another one.

        Raises:
            LauncherUnavailable: it does not start, or a required fence does not hold.
        """
        if self._worker is not None and not self._worker.alive:
            self.close()
        if self._worker is not None:
            return
        options = {
            "readable": [*BASE_RULES, *self.readable], "namespaces": self.namespaces, "leftovers": self.leftovers,
        }  # fmt: skip
        self._worker = Worker(_LAUNCHER, "exec", [json.dumps(options)], self.pass_fds)
        try:
            self._worker.control.settimeout(_START_TIMEOUT_S)
            hello = json.loads(self._message())
        except (OSError, ValueError):
            words = self._worker.log_tail()
            self.close()
            raise LauncherUnavailable(
                f"The launcher of compilers and programs did not start: {words or 'no message'}"
            ) from None
        self.granted, self.reasons = frozenset(hello["fences"]), hello["reasons"]
        if missing := sorted(self.required - self.granted):
            self.close()
            weaker = [name for name in missing if name in FENCES]
            accept = f"allow_missing={tuple(weaker)!r}" if weaker else f"min_level={level_of(self.granted).label!r}"
            said = f" ({self.reasons})" if self.reasons else ""
            raise LauncherUnavailable(
                f"This kernel or container does not grant {', '.join(missing)}{said}, so compilers and programs that "
                f"the model wrote would be less isolated than was asked for. To get {missing[0]}: "
                f"{REMEDIES[missing[0]]}. Or accept the weaker isolation with {accept}."
            )

    def close(self) -> None:
        """End the process with everything it runs and remove its folder; a forked copy only drops its handles."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.alive:
            try:
                worker.control.settimeout(1.0)
                worker.control.sendall(GOODBYE)
            except OSError:
                pass  # it ended just now
        worker.close()


def explained(ended: Ended, command: Command) -> Ended:
    """How a command ended, with the reason of a SIGKILL, which nothing behind the filter can send.

    One without a limit as its reason came from outside: from an operator, or from the kernel of a machine whose memory
    others filled.
    """
    if command.wait_status is not None and not ended.flags:
        ended = replace(ended, wait_status=command.wait_status(ended))
    if ended.signal != signal.SIGKILL or ended.flags:
        return ended
    memory = (command.memory_mb or command.data_mb) << 20
    if ended.cpu_s >= command.cpu_s:
        reason = "cpu"
    else:
        reason = "memory" if memory and ended.peak_rss >= OOM_SHARE * memory else "outside"
    return replace(ended, flags=(reason,))
