"""Temporary folders that do not outlive their owner, however it ends: a lock on each says that its owner lives.

The kernel drops the lock with the last descriptor of a process that ends by any means, so whoever can take it may
remove the folder. Every process looks for such folders when it makes its first own one. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile

from lightning_dterm.sandbox.process import remove_folder

PREFIX = "lightning-dterm-held-"
_swept: set[tuple[int, str]] = set()


class HeldFolder:
    """A private temporary folder, removed by :meth:`close`, or by the next process that looks if this one is killed.

    Args:
        kind: What it is for, part of its name.
        mode: Permissions; others may be let in where programs run as another user.

    Attributes:
        path: Where it is.
    """

    def __init__(self, kind: str, mode: int = 0o700) -> None:
        where = tempfile.gettempdir()
        if (os.getpid(), where) not in _swept:
            _swept.add((os.getpid(), where))
            sweep(where)
        self._owner, self._mode = os.getpid(), mode
        while True:
            self.path = tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-")
            self._lock = _lock(self.path)
            if self._lock != -1:  # otherwise a sweep of another process was faster
                break
        os.chmod(self.path, mode)

    def ensure(self) -> str:
        """Make it again, at its path, if it was closed."""
        if not os.path.isdir(self.path):
            os.makedirs(self.path, self._mode, exist_ok=True)
            self._lock, self._owner = _lock(self.path), os.getpid()
            os.chmod(self.path, self._mode)
        return self.path

    def close(self) -> None:
        """Remove it; in a forked copy of its owner only let go of it."""
        lock, self._lock = self._lock, None
        if os.getpid() == self._owner:
            remove_folder(self.path)
        if lock is not None and lock != -1:
            os.close(lock)


def _lock(path: str) -> int | None:
    """A descriptor that holds the lock; -1 where another one does, or it is gone; None where there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a network file system without locks on folders
        os.close(descriptor)
        return None
    os.close(descriptor)
    return -1


def sweep(where: str) -> list[str]:
    """Remove the folders in ``where`` that belonged to processes of this user which ended; those removed."""
    removed = []
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(where)):
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                    continue
            lock = _lock(entry.path)
            if lock is not None and lock != -1:
                remove_folder(entry.path)
                os.close(lock)
                removed.append(entry.path)
    return removed
