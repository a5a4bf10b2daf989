"""Embeddings that are computed once: a bounded cache in memory, and a file of records on disk behind it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_KEY, _CHECK = 16, 8


def content_key(content: bytes) -> bytes:
    """The 16-byte BLAKE2b hash by which an embedding is found again."""
    return hashlib.blake2b(content, digest_size=_KEY).digest()


class EmbeddingFile:
    """Embeddings of one encoder on disk, shared by all processes and runs that use the same encoder.

    The file only grows, by records of one size: the key (16 bytes), d float32 numbers (little-endian) and a check sum
    of both (8 bytes). Processes append under a lock; what a killed process left of a record is cut off by the next
    one that appends. A record whose check sum is wrong counts as absent, so that it is computed and appended anew.
    Nothing is flushed to the disk by force: what a power cut takes is computed again.

    Args:
        folder: Where the file lies; made if needed.
        identity: Everything that embeddings depend on besides the text; its hash is the file's name.
        dim: Width d.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: str, dim: int) -> None:
        self.dim = dim
        name = hashlib.blake2b(f"1 {dim} {identity}".encode(), digest_size=16).hexdigest()
        self.path = Path(folder).expanduser() / f"{name}.embeddings"
        self._size = _KEY + 4 * dim + _CHECK
        self._places: dict[bytes, int] = {}
        self._seen = 0

    def get(self, key: bytes) -> Tensor | None:
        """The embedding ``[d]`` stored under ``key``, or None.

        Raises:
            OSError: The file cannot be read.
        """
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            self._read_keys(file.fileno())
            place = self._places.get(key)
            if place is None:
                return None
            record = os.pread(file.fileno(), self._size, place)
        body, check = record[:-_CHECK], record[-_CHECK:]
        if len(record) < self._size or body[:_KEY] != key or check != _check_sum(body):
            del self._places[key]
            return None
        return torch.from_numpy(np.frombuffer(body, "<f4", self.dim, _KEY).astype(np.float32))

    def put(self, key: bytes, row: Tensor) -> None:
        """Append the embedding ``row [d]``.

        Raises:
            OSError: The file cannot be written.
        """
        body = key + row.numpy().astype("<f4").tobytes()
        record = memoryview(body + _check_sum(body))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by the end of the process
            torn = os.fstat(file.fileno()).st_size % self._size
            if torn:
                os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - torn)
            while record:
                record = record[file.write(record) :]

    def _read_keys(self, handle: int) -> None:
        """Take note of the whole records that were appended since the last look."""
        size = os.fstat(handle).st_size
        if size < self._seen:  # another file, or one that was cut
            self._places, self._seen = {}, 0
        chunk = max(1, (8 << 20) // self._size) * self._size
        while (size - self._seen) >= self._size:
            data = os.pread(handle, min(chunk, (size - self._seen) // self._size * self._size), self._seen)
            count = len(data) // self._size
            if not count:
                return
            for record in range(count):
                start = record * self._size
                self._places[data[start : start + _KEY]] = self._seen + start
            self._seen += count * self._size


def _check_sum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK).digest()


class EmbeddingCache:
    """What was computed of each content: the most recently used in memory, all of it in ``file`` where there is one.

    A disk that fails never stops a run: a warning says so once, and the cache goes on in memory.

    Args:
        size: Entries kept in memory, the least recently used dropped first.
        file: Where entries outlive the process; None keeps them in memory only.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, size: int = 65536, file: EmbeddingFile | None = None) -> None:
        if size < 1:
            raise ValueError(f"cache_size must be at least 1, got {size}")
        self._size = size
        self._file = file
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, content: bytes, compute: Callable[[], Tensor]) -> Tensor:
        """The row of ``content``, from memory, from disk, or computed and kept."""
        key = content_key(content)
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
            return row
        row = self._on_disk(lambda file: file.get(key))
        if row is None:
            row = computed = compute()
            self._on_disk(lambda file: file.put(key, computed))
        self._rows[key] = row
        if len(self._rows) > self._size:
            self._rows.popitem(last=False)
        return row

    def _on_disk(self, act: Callable[[EmbeddingFile], Tensor | None]) -> Tensor | None:
        if self._file is None:
            return None
        try:
            return act(self._file)
        except OSError as error:
            warnings.warn(
                f"embeddings are kept in memory only: {self._file.path} cannot be used ({error}); give the encoder "
                "another cache_dir, or null to keep none",
                stacklevel=2,
            )
            self._file = None
            return None
