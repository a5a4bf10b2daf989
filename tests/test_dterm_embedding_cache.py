"""Embeddings on disk: found again by other processes and runs, whatever a kill or a bad disk did to the file."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dterm.dterm.embedding_cache import EmbeddingCache, EmbeddingFile, content_key

KEYS = [content_key(bytes([i])) for i in range(8)]
RECORD = 16 + 4 * 3 + 8


def row(value: float) -> Tensor:
    return torch.tensor([value, -value, value / 3])


def filled(folder: Path, count: int) -> EmbeddingFile:
    file = EmbeddingFile(folder, "encoder", 3)
    for i in range(count):
        file.put(KEYS[i], row(i + 0.1))
    return file


def test_another_process_reads_what_one_wrote(tmp_path: Path) -> None:
    writer = filled(tmp_path / "made" / "on demand", 3)
    reader = EmbeddingFile(tmp_path / "made" / "on demand", "encoder", 3)
    for file in (writer, reader):
        assert all(torch.equal(file.get(KEYS[i]), row(i + 0.1)) for i in range(3))  # type: ignore[arg-type]
        assert file.get(KEYS[3]) is None
    writer.put(KEYS[3], row(7.0))
    assert torch.equal(reader.get(KEYS[3]), row(7.0))  # type: ignore[arg-type]
    assert [path.stat().st_size for path in (tmp_path / "made" / "on demand").iterdir()] == [4 * RECORD]


def test_another_encoder_has_another_file(tmp_path: Path) -> None:
    paths = {EmbeddingFile(tmp_path, identity, dim).path for identity, dim in (("a", 3), ("b", 3), ("a", 4))}
    assert len(paths) == 3


@pytest.mark.parametrize("left", [1, RECORD - 1])
def test_half_a_record_of_a_killed_process_is_cut_off(tmp_path: Path, left: int) -> None:
    path = filled(tmp_path, 2).path
    with path.open("ab") as file:
        file.write(b"x" * left)
    cut = EmbeddingFile(tmp_path, "encoder", 3)
    assert torch.equal(cut.get(KEYS[1]), row(1.1))  # type: ignore[arg-type]
    cut.put(KEYS[2], row(2.1))
    assert path.stat().st_size == 3 * RECORD
    again = EmbeddingFile(tmp_path, "encoder", 3)
    assert all(torch.equal(again.get(KEYS[i]), row(i + 0.1)) for i in range(3))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_gives_the_right_row_or_none(data: st.DataObject) -> None:
    """Whatever bytes change, are lost or come on top: never a wrong row, and what is put is found."""
    with tempfile.TemporaryDirectory() as folder:
        path = filled(Path(folder), 3).path
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        end = data.draw(st.integers(0, len(content)))
        path.write_bytes(bytes(content[:end]) + data.draw(st.binary(max_size=50)))
        damaged = EmbeddingFile(folder, "encoder", 3)
        for i in range(3):
            found = damaged.get(KEYS[i])
            assert found is None or torch.equal(found, row(i + 0.1))
            if found is None:
                damaged.put(KEYS[i], row(i + 0.1))
            assert torch.equal(damaged.get(KEYS[i]), row(i + 0.1))  # type: ignore[arg-type]


def test_a_file_that_is_removed_or_made_anew_under_a_reader(tmp_path: Path) -> None:
    reader = filled(tmp_path, 3)
    assert reader.get(KEYS[2]) is not None
    reader.path.unlink()
    assert reader.get(KEYS[2]) is None
    filled(tmp_path, 1)
    assert reader.get(KEYS[2]) is None
    assert torch.equal(reader.get(KEYS[0]), row(0.1))  # type: ignore[arg-type]


def write(folder: Path, own: int, start: Any) -> None:
    file = EmbeddingFile(folder, "encoder", 300)
    start.wait()
    for i in range(200):
        file.put(content_key(f"{own} {i}".encode()), torch.full((300,), own + i / 7))


def test_processes_append_at_once_and_one_is_killed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    writers = [fork.Process(target=write, args=(tmp_path, own, start)) for own in range(3)]
    for writer in writers:
        writer.start()
    start.set()
    file = EmbeddingFile(tmp_path, "encoder", 300)
    while file.get(content_key(b"2 5")) is None and writers[2].is_alive():
        pass
    writers[2].kill()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers[:2]] == [0, 0]
    for own in (0, 1):
        for i in range(200):
            found = file.get(content_key(f"{own} {i}".encode()))
            assert found is not None
            assert torch.equal(found, torch.full((300,), own + i / 7))


def test_memory_before_disk_before_computing(tmp_path: Path) -> None:
    computed: list[bytes] = []

    def get(cache: EmbeddingCache, content: bytes) -> Tensor:
        return cache.get(content, lambda: computed.append(content) or row(len(content)))  # type: ignore[func-returns-value]

    first = EmbeddingCache(1, EmbeddingFile(tmp_path, "encoder", 3))
    for content in (b"a", b"bb", b"a", b"a"):  # one entry in memory: "a" comes back from the disk
        assert torch.equal(get(first, content), row(len(content)))
    second = EmbeddingCache(8, EmbeddingFile(tmp_path, "encoder", 3))
    assert torch.equal(get(second, b"bb"), row(2))
    assert computed == [b"a", b"bb"]
    with pytest.raises(ValueError, match="cache_size"):
        EmbeddingCache(0)


def test_a_disk_that_fails_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = EmbeddingCache(8, EmbeddingFile(tmp_path / "file", "encoder", 3))
    with pytest.warns(UserWarning, match=r"kept in memory only: .*file.*cache_dir"):
        assert torch.equal(cache.get(b"a", lambda: row(1)), row(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cache.get(b"bb", lambda: row(2)), row(2))
        assert torch.equal(cache.get(b"a", lambda: row(9)), row(1))
