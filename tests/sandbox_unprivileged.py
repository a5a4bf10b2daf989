"""Runs the hostile table as nobody: ``python -m tests.sandbox_unprivileged MODE``; prints a report as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

NOBODY = 65534
_ROOT = Path(__file__).resolve().parent.parent


def as_nobody(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as nobody; needs root.

    Folders that only root may enter on the way to the interpreter are opened up in a mount namespace of its own.
    """
    environment = {"PATH": os.defpath, "PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": "/tmp"}
    return subprocess.run(
        command, preexec_fn=_become_nobody, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def _become_nobody() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    closed = _closed_folders()
    if closed:
        if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None):
            os._exit(77)
        for folder, inner in closed:
            _reopen(libc, folder, inner)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _closed_folders() -> list[tuple[str, str]]:
    """(folder, entry that must be reachable) for folders above the interpreter that others may not enter."""
    found = {}
    for start in (Path(sys.base_prefix).resolve(), Path(sys.executable).resolve(), _ROOT):
        path = start
        while path != path.parent:
            parent = path.parent
            if not parent.stat().st_mode & 0o001:
                found[str(parent)] = path.name
            path = parent
    return sorted(found.items())


def _reopen(libc: ctypes.CDLL, folder: str, inner: str) -> None:
    """Cover a folder with an open tmpfs in which only ``inner`` is."""
    handle = os.open(f"{folder}/{inner}", os.O_PATH)
    libc.mount(b"x", folder.encode(), b"tmpfs", 0, b"mode=755")
    os.mkdir(f"{folder}/{inner}", 0o755)
    libc.mount(f"/proc/self/fd/{handle}".encode(), f"{folder}/{inner}".encode(), None, 4096 | 16384, None)
    os.close(handle)


def main(mode: str) -> None:
    """Run every program, and an honest one after each."""
    from lightning_dterm.sandbox import Sandbox, SandboxUnavailable
    from tests.sandbox_hostile import HOSTILE
    from tests.test_sandbox_hostile import LIMITS, attack

    wrong = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Sandbox(slots=1, limits=LIMITS, namespaces=mode == "namespaces", min_level=mode) as box,
    ):
        tempfile.tempdir = folder
        try:
            level = box.level.label
        except SandboxUnavailable as error:
            print(error, file=sys.stderr)
            sys.exit(77)
        for name, (_, statuses) in HOSTILE.items():
            result, harm = attack(box, name, Path(folder))
            if harm or result.status not in statuses or any(outcome.passed for outcome in result.per_test):
                wrong.append(f"{name}: {harm} {result}")
    print(json.dumps({"uid": os.getuid(), "programs": len(HOSTILE), "level": level, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
