from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_dterm.checkpointing import AtomicCheckpointIO, atomic_write, check_ckpt_path, remove_leftovers

# Forks one endless saver for every line on stdin: the imports are paid for once.
SAVER = """
import os, sys, torch
from lightning_dterm.checkpointing import AtomicCheckpointIO

def save_for_ever(path):
    io, step, weights = AtomicCheckpointIO(), 0, torch.empty(4_000_000)
    while True:
        step += 1
        io.save_checkpoint({"step": step, "weights": weights.fill_(step), "again": weights.clone()}, path)
        os.write(1, f"{os.getpid()} {step}\\n".encode())

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        save_for_ever(sys.argv[1])
    os.waitpid(pid, 0)
    os.write(1, b"dead\\n")
"""


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_round_trip_and_overwrite(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "new" / "x.ckpt"
    for value in (1.0, 2.0):
        io.save_checkpoint({"w": torch.full((3,), value)}, path)
        assert io.load_checkpoint(path, weights_only=True)["w"].tolist() == [value] * 3
    assert [p.name for p in path.parent.iterdir()] == ["x.ckpt"]


def test_kill_in_the_middle_of_saves_never_leaves_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    generator = random.Random(0)
    killed_while_writing = 0
    command = [sys.executable, "-c", SAVER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(12):
            print("go", file=parent.stdin, flush=True)
            pid, last = map(int, parent.stdout.readline().split())
            time.sleep(generator.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)
            while (line := parent.stdout.readline()) != "dead\n":
                last = int(line.split()[1])
            killed_while_writing += bool(leftovers(tmp_path))
            saved = torch.load(path, weights_only=True)
            # Every save that was announced is on disk, and the file is of one piece.
            assert saved["step"] in (last, last + 1)
            assert saved["weights"].eq(saved["step"]).all()
            assert saved["again"].eq(saved["step"]).all()
        parent.stdin.close()
    assert killed_while_writing, "no kill fell into a write: the test proves nothing"
    AtomicCheckpointIO().save_checkpoint({"step": 0}, path)
    assert leftovers(tmp_path) == []


def test_failed_save_keeps_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "x.ckpt"
    io.save_checkpoint({"w": 1}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        io.save_checkpoint({"w": lambda: None}, path)
    assert io.load_checkpoint(path)["w"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_nothing_is_visible_under_the_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with atomic_write(path) as file:
        file.write(b"whole")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_link_is_replaced_not_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "step=1.ckpt", tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)
    link.symlink_to(target.name)
    AtomicCheckpointIO().save_checkpoint({"step": 2}, link)
    assert torch.load(target, weights_only=True)["step"] == 1
    assert torch.load(link, weights_only=True)["step"] == 2


def test_leftovers_of_the_living_and_foreign_files_stay(tmp_path: Path) -> None:
    dead = tmp_path / f".last.ckpt.{dead_pid()}.abc.partial"
    mine = tmp_path / f".last.ckpt.{os.getpid()}.abc.partial"
    others = [tmp_path / ".hidden", tmp_path / "x.partial", tmp_path / ".a.notapid.b.partial", tmp_path / "last.ckpt"]
    for path in (dead, mine, *others):
        path.write_bytes(b"")
    assert remove_leftovers(tmp_path) == [dead]
    assert not dead.exists()
    assert all(path.exists() for path in (mine, *others))


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x.ckpt", storage_options={})


def test_check_ckpt_path(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"step": 1}, path)
    assert check_ckpt_path(str(path)) is None
    assert "without meta.pt" in str(check_ckpt_path(str(tmp_path)))
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / ".metadata").touch()
    assert check_ckpt_path(str(tmp_path / "sharded")) is None
    assert check_ckpt_path("last") is None
    assert check_ckpt_path("s3://bucket/x.ckpt") is None
    problem = check_ckpt_path(str(tmp_path / "b.ckpt"))
    assert problem is not None
    assert str(tmp_path / "b.ckpt") in problem
    assert str(path) in problem  # what there is instead
    assert check_ckpt_path(str(tmp_path / "no" / "b.ckpt")) == f"checkpoint not found: {tmp_path / 'no' / 'b.ckpt'}"


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.ckpt", tmp_path / "broken.ckpt"
    torch.save({"w": torch.zeros(1000)}, whole)
    cut = whole.read_bytes()[:-200]
    for content in (b"", b"trainer:\n  max_steps: 3\n", cut):
        broken.write_bytes(content)
        problem = check_ckpt_path(str(broken))
        assert problem is not None
        assert str(broken) in problem
        assert str(whole) in problem
        assert "\n" not in problem
