"""The doctor's word on cgroups, from made-up /proc files; the rest of it runs in the tests of the sandbox's life."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_dterm.sandbox.__main__ import cgroups

MOUNT = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "controllers", "present", "why"),
    [
        ("0::/user.slice\n", MOUNT, "cpu memory pids", True, "would have to move"),
        ("0::/user.slice\n", MOUNT, "cpu memory", False, "no pids controller"),
        ("0::/user.slice\n", MOUNT, None, False, "no memory and no pids"),
        ("4:memory:/a\n", MOUNT, "memory pids", False, "no cgroup v2"),
        ("0::/user.slice\n", "35 24 0:30 / / rw - ext4 /dev/sda rw\n", "memory pids", False, "no cgroup v2"),
    ],
)
def test_cgroups(tmp_path: Path, cgroup: str, mounts: str, controllers: str | None, present: bool, why: str) -> None:
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mountinfo").write_text(mounts)
    group = tmp_path / "root" / "user.slice"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("")
    if controllers is not None:
        (group / "cgroup.controllers").write_text(controllers + "\n")
    found, said = cgroups(str(tmp_path), str(tmp_path / "root"))
    assert (found, why in said) == (present, True), said


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_group_of_others(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "mountinfo").write_text(MOUNT)
    (tmp_path / "cgroup.controllers").write_text("memory pids")
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.procs").chmod(0o444)
    assert "not delegated" in cgroups(str(tmp_path), str(tmp_path))[1]


def test_without_proc(tmp_path: Path) -> None:
    assert not cgroups(str(tmp_path))[0]
