"""Shared by the tests of compilers and compiled programs: what is installed, and what must not be left behind."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

TOOLS = {"c": "gcc", "cpp": "g++", "java": "javac", "javascript": "node", "csharp": "mcs", "go": "gofmt", "php": "php"}


def needs(language: str) -> None:
    """Skip where the language's tool is not installed, naming it."""
    if language in TOOLS and shutil.which(TOOLS[language]) is None:
        pytest.skip(f"{TOOLS[language]} is not installed")


_earlier: set[int] = set()  # processes that other modules' tests left to this one


def children() -> list[str]:
    """Command lines of all living descendants of this process but those from before the module's tests."""
    return [_command_line(pid) for pid in sorted(descendants() - _earlier)]


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return "(ended)"


def process_name(pid: int) -> str:
    """The kernel's short name of a process; empty where it ended."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def descendants() -> set[int]:
    """All living processes below this one."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                parents[int(name)] = int(fields[1])
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        parent = pending.pop()
        young = {pid for pid, its_parent in parents.items() if its_parent == parent}
        found |= young
        pending += young
    return found


def folders() -> set[str]:
    """Temporary folders of compilers and launchers."""
    return set(glob.glob(os.path.join(tempfile.gettempdir(), "lightning-dterm-*")))


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def work_files() -> list[str]:
    """Files that commands left in their own folders, the sources of living services apart."""
    found = [path for folder in folders() for path in glob.glob(f"{folder}/work/**", recursive=True)]
    return [path for path in found if os.path.basename(path) not in ("", "JavacServer.java", "server.js")]


@pytest.fixture(scope="module")
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary files go to a folder of this module's own, so that other processes and their files do not count."""
    before = tempfile.tempdir
    _earlier.clear()
    _earlier.update(descendants())
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))
    yield
    tempfile.tempdir = before
