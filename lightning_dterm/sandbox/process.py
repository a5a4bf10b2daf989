"""Processes and folders of untrusted programs: what every supervisor of the sandbox needs. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a zygote, whose every page each fork pays for, loads this module too
    import socket

_REAP_STEP_S = 0.001


def kill_everyone_else() -> None:
    """As process 1: kill every other process of the namespace, atomically."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def bury(child: int, alone: bool) -> tuple[int, float, int]:
    """End and reap a child and all it left behind: its wait status, CPU seconds and peak bytes.

    Args:
        child: A child that leads its own process group.
        alone: This process is process 1 of its namespace; otherwise it must be the subreaper of what it starts.
    """
    if alone:
        kill_everyone_else()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # not reaped yet, so the number is still its own
    _, status, usage = os.wait4(child, 0)
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                _kill_orphans(alone)
                time.sleep(_REAP_STEP_S)
        except ChildProcessError:
            return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _kill_orphans(alone: bool) -> None:
    if alone:
        kill_everyone_else()
        return
    for orphan in children(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)


def children(parent: int) -> list[int]:
    """Processes whose parent is ``parent``, from /proc."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def read_exactly(control: socket.socket, size: int) -> bytes:
    """``size`` bytes from a stream socket; nothing where the other side closed it."""
    parts, missing = [], size
    while missing:
        part = control.recv(min(missing, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def drain(pipe: int, chunk: bytearray, cap: int) -> None:
    """Read what is left in a pipe whose writers are all gone, up to ``cap`` bytes and a read more; close it."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(OSError):
        while len(chunk) <= cap and (data := os.read(pipe, 1 << 16)):
            chunk += data
    os.close(pipe)


# --- folders that programs wrote to -----------------------------------------------------------------------------------


def remove_folder(path: str) -> None:
    """Remove a folder and everything below it, without following links; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        empty_folder(path)
        os.rmdir(path)


def empty_folder(path: str) -> None:
    """Remove everything below ``path`` without following links; restores permissions a program took away.

    Folders inside folders are first moved up, so that no path is ever long and no nesting too deep.
    """
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        failures = 0
        while (names := _names(root)) and failures < 3:
            failures += sum(_remove(root, name, is_folder) for name, is_folder in names) == 0
    finally:
        os.close(root)


def _remove(root: int, name: str, is_folder: bool) -> bool:
    try:
        if is_folder:
            _flatten(root, name)
            os.rmdir(name, dir_fd=root)
        else:
            os.unlink(name, dir_fd=root)
    except OSError:
        return False
    return True


def _names(folder: int) -> list[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _flatten(root: int, name: str) -> None:
    """Empty the folder ``name`` of ``root``, moving the folders in it to ``root``."""
    open_up(name, root)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        for inner, is_folder in _names(folder):
            if is_folder:
                with contextlib.suppress(OSError):
                    os.rmdir(inner, dir_fd=folder)
                    continue
                open_up(inner, folder)
                os.rename(inner, os.urandom(16).hex(), src_dir_fd=folder, dst_dir_fd=root)
            else:
                os.unlink(inner, dir_fd=folder)
    finally:
        os.close(folder)


def open_up(name: str, parent: int | None = None) -> None:
    """Give a folder back to its owner (mode 0700), whatever a program made of its permissions.

    Never through a link: a plain ``chmod`` of a name that is exchanged for a link may change any folder there is.

    Args:
        name: Of the folder, in ``parent``.
        parent: Descriptor of the folder that holds it; None: the working folder.

    Raises:
        OSError: It is no folder, or is somebody else's.
    """
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags | os.O_RDONLY, dir_fd=parent)
    except PermissionError:  # not to be read as it is; a descriptor that only names it needs no permission
        descriptor = os.open(name, flags | os.O_PATH, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{descriptor}", 0o700)
        finally:
            os.close(descriptor)
        return
    try:
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


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


def write_new(path: str, data: bytes, owner: int | None = None) -> None:
    """Write a file that must not exist yet, for ``owner``."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    with open(descriptor, "wb") as file:
        file.write(data)
        if owner is not None:
            os.fchown(descriptor, owner, owner)
