"""Checkpoint files that are whole or not there, and the questions one asks of a checkpoint path."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO

_SUFFIX = ".partial"
_LEFTOVER = re.compile(r"^\..+\.(?P<pid>\d+)\.[^.]+" + re.escape(_SUFFIX) + "$")
_SHARDED = ("meta.pt", ".metadata")  # Lightning's and torch's, of a checkpoint that is a folder
CKPT_KEYWORDS = ("last", "best", "hpc")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint so that its path always holds the whole old file or the whole new one.

    The bytes go to a hidden temporary file in the same folder, are flushed to the disk, and the file is renamed over
    the target; then the folder itself is flushed, so that the new name survives a power cut too. A process that is
    killed in between leaves only its temporary file, which the next process to save there removes. The file is
    streamed: saving needs no second copy of the checkpoint in memory. Remote paths (``s3://...``) are Lightning's.
    """

    def __init__(self) -> None:
        self._swept: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            TypeError: If ``storage_options`` is given, as in the class this one extends.
            OSError: If the disk is full or the folder is not writable; ``path`` then still holds what it held.
        """
        if storage_options is not None or not _is_local_file_protocol(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.parent.resolve()
        if folder not in self._swept:
            remove_leftovers(folder)
            self._swept.add(folder)
        with atomic_write(target) as file:
            torch.save(checkpoint, file)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that replaces it when the block ends, and vanishes if the block raises.

    A symbolic link at ``path`` is replaced, not what it points to.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.{os.getpid()}.", suffix=_SUFFIX, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _mode())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_folder(target.parent)


def _mode() -> int:
    """Permissions that the umask leaves a new file (mkstemp's are 0600)."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files of processes that no longer live; returns what was removed."""
    removed = []
    for entry in Path(folder).iterdir():
        match = _LEFTOVER.match(entry.name)
        if match and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                entry.unlink()
                removed.append(entry)
    return removed


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def check_ckpt_path(path: str) -> str | None:
    """Why ``path`` cannot be resumed from; None if it can, or if only Lightning can tell (keywords, remote paths)."""
    if path in CKPT_KEYWORDS or path.startswith("registry") or not _is_local_file_protocol(path):
        return None
    if os.path.isdir(path) and not any((Path(path) / name).is_file() for name in _SHARDED):
        return f"not a checkpoint: {path} is a folder without {' or '.join(_SHARDED)}, which sharded ones have"
    if os.path.isdir(path) or (os.path.isfile(path) and zipfile.is_zipfile(path)):
        return None
    folder = Path(path).parent
    found = sorted(str(p) for p in folder.glob("*.ckpt") if p != Path(path)) if folder.is_dir() else []
    hint = f"; that folder has: {', '.join(found)}" if found else ""
    if os.path.isfile(path):
        return f"not a checkpoint, or not whole: {path} (resume from another one, or start anew without it){hint}"
    return f"checkpoint not found: {path}{hint}"
