"""Namespaces around one zygote: its own users, processes, network, IPC and file tree. Standard library only.

The tree holds, read-only, the standard library, shared objects and four devices; programs write to a small tmpfs that
is mounted for each of them and detached after it. The zygote is process 1 of its process namespace, so one
``kill(-1, SIGKILL)`` ends whatever a program left behind, and the kernel ends everything when the zygote ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from lightning_dterm.sandbox.kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    PR_SET_DUMPABLE,
    Kernel,
)

NOBODY = 65534
WORK = "/work"
CWD = "/work/cwd"
TMPFS_SIZE, TMPFS_INODES = "16m", 2048
SHARED_OBJECTS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
DATA = ("/usr/share/zoneinfo", "/etc/localtime")
_INNER = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
PLANS = ("user", "root")
"""``user``: a user namespace of an unprivileged user (root becomes nobody first). ``root``: none, needs privileges."""


def standard_library() -> list[str]:
    """The interpreter's own folders and archives, third-party packages' excepted."""
    return [path for path in sys.path if os.path.exists(path) and "-packages" not in os.path.basename(path)]


def choose(kernel: Kernel, folder: str) -> tuple[str | None, str]:
    """The first plan that works here, tried for real in a throw-away child; and why the others do not.

    Args:
        kernel: Its ``machine`` must be known.
        folder: An empty folder.
    """
    reasons = []
    for plan in PLANS if os.geteuid() == 0 else PLANS[:1]:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                enter(kernel, plan, folder)
                inner = os.fork()
                if inner == 0:
                    mount_scratch(kernel, plan)
                    unmount_scratch(kernel)
                    os._exit(0)
                code = 0 if os.waitpid(inner, 0)[1] == 0 else 1
            except BaseException as error:
                os.write(writer, str(error).encode("utf-8", "replace")[:300])
            os._exit(code)
        os.close(writer)
        said = os.read(reader, 300).decode("utf-8", "replace")
        os.close(reader)
        if os.waitpid(pid, 0)[1] == 0:
            return plan, ""
        reasons.append(f"{plan}: {said or 'refused'}")
    return None, "; ".join(reasons)


def enter(kernel: Kernel, plan: str, folder: str) -> None:
    """Move this single-threaded process into its namespaces; the process namespace begins with its next child.

    Raises:
        OSError: the kernel or a container profile refuses.
    """
    process = os.open("/proc/self", os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        privileged = os.geteuid() == 0
        if privileged:
            kernel.unshare(CLONE_NEWNS)
            _build_tree(kernel, folder)
        if plan == "user":
            if privileged:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            kernel.prctl(PR_SET_DUMPABLE, 1)  # or the maps in /proc would belong to root
            uid, gid = os.geteuid(), os.getegid()
            kernel.unshare(_INNER | CLONE_NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                _write(process, name, text)
            if not privileged:
                _build_tree(kernel, folder)
        else:
            kernel.unshare(_INNER)
    finally:
        os.close(process)


def become_nobody() -> None:
    """In a program's process under the plan ``root``: give up the uid, and with it every privilege."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def mount_scratch(kernel: Kernel, plan: str) -> None:
    """Mount a program's own scratch folder."""
    owner = f",uid={NOBODY},gid={NOBODY}" if plan == "root" else ""
    options = f"size={TMPFS_SIZE},nr_inodes={TMPFS_INODES},mode=700{owner}"
    kernel.mount("scratch", CWD, "tmpfs", MS_NOSUID | MS_NODEV, options)


def unmount_scratch(kernel: Kernel) -> None:
    """Throw a program's scratch folder away, whatever is in it."""
    kernel.unmount(CWD)


def kill_everyone_else() -> None:
    """As process 1: kill every other process of the namespace, atomically."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def _write(process: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=process)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _build_tree(kernel: Kernel, folder: str) -> None:
    """Make a tmpfs on ``folder`` the root, with nothing but what programs may read."""
    kernel.mount("none", "/", "", MS_REC | MS_PRIVATE)
    kernel.mount("root", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in _outermost([*SHARED_OBJECTS, *standard_library(), *DATA]):
        _graft(kernel, folder, path)
    for path in DEVICES:
        if os.path.exists(path):
            _graft(kernel, folder, path)
    os.makedirs(folder + CWD, mode=0o755)
    os.chdir(folder)
    kernel.pivot_root_here()
    kernel.mount("none", "/", "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, "size=1m,mode=755")


def _outermost(paths: list[str]) -> list[str]:
    """Existing paths that lie below no other one, links kept as links."""
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths if os.path.lexists(path)}):
        if not any(path.startswith(above + "/") and not os.path.islink(above) for above in found):
            found.append(path)
    return found


def _graft(kernel: Kernel, folder: str, path: str) -> None:
    target = folder + path
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.islink(path):
        real = os.path.realpath(path)
        os.symlink(os.readlink(path), target)
        if not os.path.lexists(folder + real) and not any(real.startswith(f"{p}/") for p in SHARED_OBJECTS):
            _graft(kernel, folder, real)
        return
    if os.path.isdir(path):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.bind_read_only(path, target)
