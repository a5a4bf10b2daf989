"""The judge: a process between trainer and programs that holds the expected values and compares.

Run by path in a bare interpreter (``python -s -S -B judge_process.py CONTROL_FD TRAINER_PID SETTINGS``), so the trainer
is never forked, its interpreter lock is not needed to judge, and whatever a program does to its judge it does not do to
the trainer. One thread reads jobs, one writes results, and one per slot drives a zygote. It ends with the trainer.
"""

from __future__ import annotations

import sys
import types
from os.path import abspath, dirname

if __name__ == "__main__":
    sys.path.pop(0)
    # The package without its __init__ files, which would import the trainer's libraries.
    for _name, _path in (("lightning_dterm", dirname(dirname(abspath(__file__)))),
                         ("lightning_dterm.sandbox", dirname(abspath(__file__)))):  # fmt: skip
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [_path]

import json
import os
import pickle
import select
import socket
import struct
import threading
from queue import SimpleQueue
from typing import Any

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.judge import Judged
from lightning_dterm.sandbox.levels import Level
from lightning_dterm.sandbox.result import Limits, to_plain
from lightning_dterm.sandbox.slot import SandboxUnavailable, Settings, Slot

MESSAGE = struct.Struct("!IQ")  # bytes that follow, number of the job


class Server:
    """Reads jobs, has slots judge them, writes verdicts as they come."""

    def __init__(self, control: socket.socket, settings: Settings) -> None:
        self._control, self._settings = control, settings
        self._jobs: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        self._answers: SimpleQueue[bytes] = SimpleQueue()

    def serve(self, trainer: int, slots: int) -> None:
        """Work until the trainer says so, closes the socket or dies."""
        threading.Thread(target=self._write, daemon=True).start()
        for place in range(slots):
            threading.Thread(target=self._drive, args=(place,), daemon=True).start()
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(trainer, select.POLLIN)
        buffer = bytearray()
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if trainer in ready:
                return
            chunk = self._control.recv(1 << 20)
            buffer += chunk
            if not chunk or not self._take(buffer):
                return

    def _take(self, buffer: bytearray) -> bool:
        """Queue the complete jobs of a buffer; False where the trainer says goodbye."""
        while len(buffer) >= MESSAGE.size:
            length, number = MESSAGE.unpack_from(buffer)
            if length == 0:
                return False
            if len(buffer) < MESSAGE.size + length:
                return True
            self._jobs.put((number, bytes(buffer[MESSAGE.size : MESSAGE.size + length])))
            del buffer[: MESSAGE.size + length]
        return True

    def _write(self) -> None:
        while True:
            try:
                self._control.sendall(self._answers.get())
            except OSError:
                os._exit(0)

    def _drive(self, place: int) -> None:
        slot, known = Slot(self._settings), None
        while True:
            number, data = self._jobs.get()
            answer: list[Any]
            try:
                judged = slot.run(pickle.loads(data))  # from the trainer, never from a program
                answer = ["result", to_plain(judged.result), _kept(judged)]
            except SandboxUnavailable as error:
                answer = ["unavailable", str(error)]
            except Exception as error:
                answer = ["error", f"{type(error).__name__}: {error}"]
            state = [place, slot.level.label, sorted(slot.fences), slot.reasons, slot.pid]
            if slot.pid is not None and state != known:
                known = state
                self._answer(0, ["slot", state])
            self._answer(number, answer)

    def _answer(self, number: int, content: list[Any]) -> None:
        data = json.dumps(content).encode("ascii")
        self._answers.put(MESSAGE.pack(len(data), number) + data)


def _kept(judged: Judged) -> list[list[Any]]:
    return [[place, wire.encode(value)] for place, value in judged.kept.items()]


def main() -> None:
    """Take up the socket and serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent, given = int(sys.argv[2]), json.loads(sys.argv[3])
    trainer = os.pidfd_open(parent)
    if os.getppid() != parent:
        raise SystemExit("the trainer is gone")
    settings = Settings(
        Limits(**given["limits"]), Level.parse(given["min_level"]), given["namespaces"], frozenset(given["without"])
    )
    Server(control, settings).serve(trainer, given["slots"])
    os._exit(0)  # closes the control sockets; zygotes end with their program and clean up


if __name__ == "__main__":
    main()
