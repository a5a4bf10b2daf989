"""The trusted end of a worker: a script in a bare interpreter, started by exec, with a socket, a log and a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from lightning_dterm.sandbox.folders import HeldFolder


class Worker:
    """A process of ours that runs ``script CONTROL_FD OUR_PID FOLDER ARGUMENTS...``; standard library only in there.

    Args:
        script: What it runs.
        kind: What its folder is called.
        arguments: What follows the folder.
        pass_fds: Descriptors to hand on besides the control socket.
        packets: A socket that keeps messages apart instead of a stream.

    Attributes:
        control: Our end of the socket.
        folder: Its folder, which goes when it does.
    """

    def __init__(
        self, script: Path, kind: str, arguments: Sequence[str], pass_fds: Sequence[int] = (), packets: bool = False
    ) -> None:
        self._owner = os.getpid()
        self._held = HeldFolder(kind)
        self.folder = self._held.path
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if packets else socket.SOCK_STREAM)
        self.control = ours
        command = [sys.executable, "-s", "-S", "-B", "-W", "ignore", str(script), str(theirs.fileno())]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*command, str(os.getpid()), self.folder, *arguments], stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=self._log, cwd="/", pass_fds=(theirs.fileno(), *pass_fds),
                    env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": os.defpath}, start_new_session=True,
                )  # fmt: skip
        except BaseException:  # no process to be had
            ours.close()
            self._log.close()
            self._held.close()
            raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, and for this process: a forked copy of its owner has none."""
        return self._owner == os.getpid() and self._process.poll() is None

    def log_tail(self) -> str:
        """The end of what it wrote to standard error."""
        self._log.seek(0)
        return self._log.read()[-500:].decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Close the socket, wait for its end, or end it, and remove its folder; a forked copy only lets go."""
        self.control.close()
        self._log.close()
        if self._owner == os.getpid():
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        else:
            self._process.returncode = 0  # not our child: keep Popen's finalizer quiet
        self._held.close()
