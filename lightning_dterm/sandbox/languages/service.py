"""A persistent compiler: one warm process, many programs, length-prefixed messages over pipes."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence

from lightning_dterm.sandbox.languages.launcher import LENGTH
from lightning_dterm.sandbox.languages.process import FENCES, Command, Ended, Launcher, LauncherLost, explained

_MAX_ANSWER = 64 << 20
_CANARY_S = 300.0
_ATTEMPTS = 3


class ServiceLost(Exception):
    """The service ended, hung or broke its protocol while it held a program.

    Attributes:
        timed_out: It did not answer in time.
        ended: How its process ended, where that is known.
        outside: It, or the launcher that held it, was killed from outside.
    """

    def __init__(self, message: str, timed_out: bool = False, ended: Ended | None = None) -> None:
        super().__init__(message)
        self.timed_out, self.ended, self.outside = timed_out, ended, False


class Service:
    """Starts on first use, takes one request at a time (thread-safe), starts anew after a loss.

    Args:
        command: What to run; its standard streams become the channel.
        readable: What it may read, as for :class:`Launcher`.
        required: Fences that must hold.
        lifetime: Requests after which a fresh process takes over.
        canary: A message for each fresh process, and whether its answer is right: one that does not pass judges nobody.
    """

    def __init__(
        self,
        command: Command,
        readable: Sequence[tuple[str, str]],
        required: frozenset[str] = FENCES,
        lifetime: int = 20_000,
        canary: tuple[bytes, Callable[[bytes], bool]] | None = None,
    ) -> None:
        self._command, self._readable, self._required, self._lifetime = command, readable, required, lifetime
        self._canary = canary
        self._leftovers: Sequence[str] = ()
        self._namespaces = True
        self._lock = threading.RLock()
        self._launcher: Launcher | None = None
        self._streams = (-1, -1)
        self._served = 0
        self._owner = 0
        self.starts = 0

    def adopt(self, required: frozenset[str], leftovers: Sequence[str], namespaces: bool) -> None:
        """Before the first request: fences that must hold, what else to remove if this process is killed, namespaces or
        not; as for :class:`Launcher`."""
        self._required, self._leftovers, self._namespaces = required, leftovers, namespaces

    def request(self, message: bytes, wall_s: float) -> bytes:
        """Send one message and wait for the answer; where the process ends over it, once more to a fresh one.

        So whatever another message did to the process is never held against this one; nor is a process that was
        killed from outside.

        Raises:
            ServiceLost: no proper answer; the process is gone.
            LauncherLost: a fresh process does not answer its canary as it should, or each one is killed from outside.
            LauncherUnavailable: it cannot be started as isolated as required.
        """
        with self._lock:
            if self._owner != os.getpid() or self._served >= self._lifetime:
                self.close()
            ends = 0
            for _ in range(_ATTEMPTS):
                try:
                    if self._launcher is None:
                        self._start()
                    return self._asked(message, wall_s)
                except ServiceLost as lost:
                    ends += not lost.outside
                    if lost.timed_out or ends > 1:
                        raise
            raise LauncherLost(f"{self._command.executable} was killed from outside, again and again")

    def _asked(self, message: bytes, wall_s: float) -> bytes:
        """One message, one answer; the process is ended where it does not come."""
        self._served += 1
        deadline = time.monotonic() + wall_s
        try:
            self._write(message, deadline)
            size = LENGTH.unpack(self._read(LENGTH.size, deadline))[0]
            if size > _MAX_ANSWER:
                raise ServiceLost("its answer is too large")
            return self._read(size, deadline)
        except ServiceLost as lost:
            if not lost.timed_out:
                lost.ended, lost.outside = self._ending()
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for_child, ours_out = os.pipe()
        ours_in, from_child = os.pipe()
        self._streams, self._owner, self._served = (ours_in, ours_out), os.getpid(), 0
        self._launcher = Launcher(
            self._readable, self._required, (for_child, from_child), self._namespaces, self._leftovers
        )
        try:
            self._launcher.start()
            self._launcher.send(self._command, for_child, from_child)
        except OSError as error:
            self.close()
            raise LauncherLost(f"launcher lost: {type(error).__name__}: {error}") from error
        except BaseException:
            self.close()
            raise
        finally:
            os.close(for_child)
            os.close(from_child)
        os.set_blocking(ours_out, False)
        self.starts += 1
        if self._canary is not None:
            message, accepts = self._canary
            try:
                answer = self._asked(message, _CANARY_S)
            except ServiceLost as lost:
                if lost.outside:
                    raise
                raise LauncherLost(f"{self._command.executable} does not compile a good program: {lost}") from lost
            if not accepts(answer):
                self.close()
                raise LauncherLost(f"{self._command.executable} refuses a good program: {answer[:200]!r}")

    def _write(self, message: bytes, deadline: float) -> None:
        view = memoryview(message)
        while view:
            _wait(self._streams[1], select.POLLOUT, deadline)
            try:
                view = view[os.write(self._streams[1], view[: 1 << 16]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise ServiceLost(f"it closed its input: {error}") from error

    def _read(self, size: int, deadline: float) -> bytes:
        parts, missing = [], size
        while missing:
            _wait(self._streams[0], select.POLLIN, deadline)
            part = os.read(self._streams[0], min(missing, 1 << 20))
            if not part:
                raise ServiceLost("it ended")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _ending(self) -> tuple[Ended | None, bool]:
        """How the process ended, None where it lives on or nobody knows; whether it was killed from outside."""
        assert self._launcher is not None
        try:
            ended = explained(self._launcher.receive(2.0), self._command)
        except TimeoutError:
            return None, False
        except (OSError, ValueError):  # the launcher is gone, and no program can reach it
            return None, True
        return ended, "outside" in ended.flags

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            launcher, self._launcher = self._launcher, None
            streams, self._streams = self._streams, (-1, -1)
            for descriptor in streams:
                if descriptor >= 0:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            if launcher is not None:
                launcher.close()


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poller = select.poll()
    poller.register(descriptor, event)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise ServiceLost("no answer in time", timed_out=True)
