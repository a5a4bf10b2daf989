"""Content-addressed cache of compilations: written once, by renaming, never read through a link."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import threading
import weakref
from collections import OrderedDict
from dataclasses import asdict, replace
from typing import Any

from lightning_dterm.sandbox.folders import HeldFolder
from lightning_dterm.sandbox.languages.diagnostics import Diagnostic, Report

_FORMAT = 1
_IN_MEMORY = 4096
_MEMORY_BYTES = 64 << 20


class CompileCache:
    """Reports and artifacts by the hash of what they depend on.

    A file holds the SHA-256 of its content in its first line; what does not match (a torn or altered file) is a miss
    and is written anew. No sandboxed process can reach the folder. Reports of programs that made the compiler give up
    stay in memory, since they depend on limits and load; ``infra`` is never kept.

    Args:
        folder: Where to keep it across runs; None keeps it in a private temporary folder that :meth:`close` removes.
        max_mb: Size at which the oldest files are removed, down to three quarters.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, max_mb: int = 1024) -> None:
        if max_mb < 1:
            raise ValueError(f"CompileCache.max_mb must be at least 1, got {max_mb}.")
        self._held = HeldFolder("cache") if folder is None else None
        self.folder = self._held.path if self._held else os.path.abspath(folder or "")
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self._max_bytes = max_mb << 20
        self._recent: OrderedDict[str, Report] = OrderedDict()
        self._recent_bytes = 0
        self._lock = threading.Lock()
        if self._held is not None:
            weakref.finalize(self, self._held.close)
        self._size = sum(size for _, size, _ in self._files())
        self.hits = 0
        self.misses = 0

    @property
    def temporary(self) -> bool:
        """Whether its folder goes with it."""
        return self._held is not None

    @staticmethod
    def key(*parts: str) -> str:
        """The address of whatever depends on ``parts`` alone."""
        encoded = json.dumps([_FORMAT, *parts], ensure_ascii=True).encode("ascii")
        return hashlib.sha256(encoded).hexdigest()

    def get(self, key: str) -> Report | None:
        """The report kept under ``key``."""
        with self._lock:
            found = self._recent.get(key)
            if found is not None:
                self._recent.move_to_end(key)
        if found is None:
            found = self._read(key)
            if found is not None:
                self._remember(key, found)
        with self._lock:
            self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return None if found is None else replace(found, cached=True)

    def put(self, key: str, report: Report) -> None:
        """Keep a report; the first one kept under a key stays."""
        if report.status == "infra":
            return
        self._remember(key, report)
        if report.status not in ("ok", "errors"):
            return
        artifact = report.artifact or b""
        fields = asdict(replace(report, artifact=None, cached=False))
        head = json.dumps({**fields, "built": report.artifact is not None}).encode("ascii")
        body = str(len(head)).encode() + b"\n" + head + artifact
        self._write(key, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def close(self) -> None:
        """Remove a temporary folder, in the process that made it."""
        if self._held is not None:
            self._held.close()

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, key[:2], key)

    def _remember(self, key: str, report: Report) -> None:
        with self._lock:
            if key in self._recent:
                return
            self._recent[key] = report
            self._recent_bytes += len(report.artifact or b"")
            while len(self._recent) > _IN_MEMORY or (self._recent_bytes > _MEMORY_BYTES and len(self._recent) > 1):
                self._recent_bytes -= len(self._recent.popitem(last=False)[1].artifact or b"")

    def _read(self, key: str) -> Report | None:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        with open(descriptor, "rb") as file:
            digest, _, body = file.read().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            with contextlib.suppress(OSError):
                os.unlink(self._path(key))  # torn: make room for a good one
            return None
        size, _, rest = body.partition(b"\n")
        fields: dict[str, Any] = json.loads(rest[: int(size)])
        artifact = rest[int(size) :] if fields.pop("built") else None
        fields["diagnostics"] = tuple(Diagnostic(**one) for one in fields["diagnostics"])
        return Report(**{**fields, "artifact": artifact})

    def _write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            if self._held is not None:
                self._held.ensure()
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
            with open(descriptor, "wb") as file:
                file.write(data)
            try:
                os.link(temporary, path)  # unlike rename, fails where the name is taken: written once
            except FileExistsError:
                return
            finally:
                os.unlink(temporary)
        except OSError:
            return  # a full disk costs time, not correctness
        with self._lock:
            self._size += len(data)
            if self._size > self._max_bytes:
                self._shrink()

    def _files(self) -> list[tuple[float, int, str]]:
        found = []
        for entry in os.scandir(self.folder):
            if entry.is_dir(follow_symlinks=False) and len(entry.name) == 2:
                for file in os.scandir(entry.path):
                    with contextlib.suppress(OSError):
                        status = file.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, file.path))
        return found

    def _shrink(self) -> None:
        files = sorted(self._files())
        self._size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._size <= self._max_bytes * 3 // 4:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                self._size -= size
