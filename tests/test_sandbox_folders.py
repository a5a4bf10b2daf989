"""Temporary folders go with their owner: closed, killed, forked, or made while another process sweeps."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lightning_dterm.sandbox.folders import PREFIX, HeldFolder, sweep
from lightning_dterm.sandbox.process import empty_folder, open_up, remove_folder
from lightning_dterm.sandbox.spawn import Worker

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")
ROOT = str(Path(__file__).resolve().parent.parent)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_held_folder_goes_when_closed_and_comes_back(where: Path) -> None:
    folder = HeldFolder("test")
    path = Path(folder.path)
    assert path.parent == where
    assert path.stat().st_mode & 0o777 == 0o700
    (path / "deep" / "er").mkdir(parents=True)
    (path / "link").symlink_to(ROOT)
    assert sweep(str(where)) == []  # this process lives
    folder.close()
    assert list(where.iterdir()) == []
    assert os.path.isdir(ROOT)
    assert folder.ensure() == str(path)
    assert path.is_dir()
    assert sweep(str(where)) == []
    folder.close()
    assert list(where.iterdir()) == []


def test_a_forked_copy_lets_go_without_removing(where: Path) -> None:
    folder = HeldFolder("test")
    child = os.fork()
    if child == 0:
        folder.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.path.isdir(folder.path)
    assert sweep(str(where)) == []  # the copy did not unlock it either
    folder.close()


def test_a_killed_owner_s_folder_is_swept_by_the_next_process(where: Path) -> None:
    script = (
        "import tempfile, sys, time\nfrom lightning_dterm.sandbox.folders import HeldFolder\n"
        "tempfile.tempdir = sys.argv[1]\nfolder = HeldFolder('test')\n"
        "open(folder.path + '/file', 'w').close()\nprint(folder.path, flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(where)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}) as owner:
        assert owner.stdout is not None
        path = owner.stdout.readline().strip()
        assert os.path.exists(path + "/file")
        assert sweep(str(where)) == []
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    (where / "lightning-dterm-other").mkdir()  # nobody said that this may go
    mine = HeldFolder("test")
    assert not os.path.exists(path)
    assert sorted(one.name for one in where.iterdir()) == sorted([Path(mine.path).name, "lightning-dterm-other"])
    mine.close()


def test_links_and_other_users_folders_are_left_alone(where: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "file").write_text("x")
    (where / f"{PREFIX}link").symlink_to(outside)
    if os.geteuid() == 0:
        (where / f"{PREFIX}foreign").mkdir()
        os.chown(where / f"{PREFIX}foreign", 65534, 65534)
    assert sweep(str(where)) == []
    assert (outside / "file").read_text() == "x"


def test_a_new_folder_that_another_process_sweeps_at_once_is_made_again(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = tempfile.mkdtemp

    def raced(*args: object, **kwargs: object) -> str:
        path = real(*args, **kwargs)  # type: ignore[call-overload]
        if not made:
            os.rmdir(path)
        made.append(path)
        return str(path)

    monkeypatch.setattr(tempfile, "mkdtemp", raced)
    folder = HeldFolder("test")
    assert len(made) == 2
    assert folder.path == made[1]
    held = os.open(folder.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held)
    folder.close()


def test_a_worker_that_cannot_be_started_leaves_nothing(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", str(where / "missing"))
    with pytest.raises(FileNotFoundError):
        Worker(Path("script.py"), "test", [])
    assert list(where.iterdir()) == []
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def test_folders_without_permissions_and_of_great_depth_are_emptied(where: Path) -> None:
    inner = where / "a"
    inner.mkdir()
    here = os.open(inner, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 10, dir_fd=here)
        below = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    os.chmod(inner, 0)
    remove_folder(str(where / "missing"))
    empty_folder(str(where))
    assert list(where.iterdir()) == []


def test_permissions_are_given_back_to_folders_never_through_links(where: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (where / "link").symlink_to(outside)
    (where / "shut").mkdir(mode=0)
    descriptor = os.open(where, os.O_RDONLY)
    try:
        open_up("shut", descriptor)
        with pytest.raises(OSError, match="link"):
            open_up("link", descriptor)
    finally:
        os.close(descriptor)
    assert (where / "shut").stat().st_mode & 0o777 == 0o700
    assert outside.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
def test_permissions_are_given_back_without_root(where: Path) -> None:
    (where / "shut").mkdir(mode=0)
    os.chmod(where, 0o755)
    for folder in (where, where / "shut"):
        os.chown(folder, 65534, 65534)
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(where)
            os.setuid(65534)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, lost with root
            open_up("shut")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (where / "shut").stat().st_mode & 0o777 == 0o700


BURY = """
import os, signal, subprocess, sys, time
from lightning_dterm.sandbox.process import bury, children

code = "import os, time; os.setsid(); os.fork() or time.sleep(600); print(flush=True); time.sleep(600)"
process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
process.stdout.readline()
(grandchild,) = children(process.pid)
# Not a subreaper: the grandchild goes to init, but to the group's signal first.
os.killpg(process.pid, signal.SIGSTOP)
status, cpu_s, peak = bury(process.pid, alone=False)
process.returncode = 0
print(grandchild, os.WTERMSIG(status), cpu_s, peak)
"""


def test_bury_ends_a_child_and_its_group() -> None:
    """In a process of its own: ``bury`` ends every child of its caller."""
    command = [sys.executable, "-c", BURY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    grandchild, number, cpu_s, peak = done.stdout.split()
    assert int(number) == signal.SIGKILL
    assert float(cpu_s) > 0
    assert int(peak) > 1 << 20
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(int(grandchild)):
        time.sleep(0.01)
    assert not _alive(int(grandchild))


def _alive(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
