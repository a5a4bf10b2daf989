"""Namespaces around one zygote: its own users, processes, network, IPC and file tree. Standard library only.

The tree holds, read-only, the standard library, shared objects and four devices; programs write to a small tmpfs that
is mounted for each of them and detached after it. The zygote is process 1 of its process namespace, so one
``kill(-1, SIGKILL)`` ends whatever a program left behind, and the kernel ends everything when the zygote ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_dterm.sandbox.kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    PR_SET_DUMPABLE,
    Kernel,
    become,
)

__all__ = ["CWD", "PLANS", "SHARED_OBJECTS", "WORK", "Tree", "choose", "cover_proc", "enter", "fences_of",
           "mount_scratch", "standard_library", "unmount_scratch"]  # fmt: skip
WORK = "/work"
CWD = "/work/cwd"
TMPFS_SIZE, TMPFS_INODES = "16m", 2048
SHARED_OBJECTS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
DATA = ("/usr/share/zoneinfo", "/etc/localtime")
_INNER = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
PLANS = ("user", "root")
"""``user``: a user namespace of an unprivileged user (root gives itself up first). ``root``: none, needs privileges."""


@dataclass(frozen=True)
class Tree:
    """What a file tree holds, each thing at its own path.

    Attributes:
        readable: Files, folders and devices, read-only; those that do not exist are left out.
        writable: Folders that can be written to.
        scratch: Whether it has :data:`CWD`, for :func:`mount_scratch`.
        links: Symbolic links to copy, whether what they point to is there or not.
        made: Further symbolic links, (path, target).
        proc: Whether process 1 will call :func:`cover_proc`.
    """

    readable: Sequence[str]
    writable: Sequence[str] = field(default=())
    scratch: bool = False
    links: Sequence[str] = field(default=())
    made: Sequence[tuple[str, str]] = field(default=())
    proc: bool = False


def python_tree() -> Tree:
    """What a Python program may see: standard library, shared objects, four devices, and its scratch folder.

    The names of standard input and output lead to where ``text_runtime`` keeps them, since there is no /proc.
    """
    streams = [(f"/dev/{name}", f"{CWD}/{name}") for name in ("stdin", "stdout")]
    return Tree([*SHARED_OBJECTS, *standard_library(), *DATA, *DEVICES], scratch=True, made=streams)


def fences_of(plan: str | None) -> list[str]:
    """The fences that a plan amounts to."""
    return [] if plan is None else ["mount", "pid", "net", "ipc", *(["user"] if plan == "user" else [])]


def standard_library() -> list[str]:
    """The interpreter's own folders and archives, third-party packages' excepted."""
    return [path for path in sys.path if os.path.exists(path) and "-packages" not in os.path.basename(path)]


def choose(kernel: Kernel, folder: str, tree: Tree | None = None) -> tuple[str | None, str]:
    """The first plan that works here, tried for real in a throw-away child; and why the others do not.

    Args:
        kernel: Its ``machine`` must be known.
        folder: An empty folder.
        tree: What to see there; default: :func:`python_tree`.
    """
    tree = tree or python_tree()
    reasons = []
    for plan in PLANS if os.geteuid() == 0 else PLANS[:1]:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                enter(kernel, plan, folder, tree)
                inner = os.fork()
                if inner == 0:
                    if tree.proc:
                        cover_proc(kernel)
                    if tree.scratch:
                        mount_scratch(kernel, plan)
                        unmount_scratch(kernel)
                    os._exit(0 if os.getpid() == 1 else 1)
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


def enter(kernel: Kernel, plan: str, folder: str, tree: Tree | None = None) -> None:
    """Move this single-threaded process into its namespaces; the process namespace begins with its next child.

    Raises:
        OSError: the kernel or a container profile refuses.
    """
    tree = tree or python_tree()
    kernel.offer_to_the_oom_killer()  # there may be no /proc inside
    process = os.open("/proc/self", os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        privileged = os.geteuid() == 0
        if privileged:
            kernel.unshare(CLONE_NEWNS)
            _build_tree(kernel, folder, tree)
        if plan == "user":
            if privileged:
                become(kernel.spare_user)
            kernel.prctl(PR_SET_DUMPABLE, 1)  # or the maps in /proc would belong to root
            uid, gid = os.geteuid(), os.getegid()
            kernel.unshare(_INNER | CLONE_NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                _write(process, name, text)
            if not privileged:
                _build_tree(kernel, folder, tree)
        else:
            kernel.unshare(_INNER)
    finally:
        os.close(process)


def cover_proc(kernel: Kernel) -> None:
    """As process 1: put a /proc of this process namespace over the outer one, or nothing where a container forbids it.

    Raises:
        OSError: the outer one stays visible; nothing untrusted may run.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    try:
        kernel.mount("proc", "/proc", "proc", flags)
    except OSError:
        kernel.mount("nothing", "/proc", "tmpfs", flags | MS_RDONLY, "size=4k,mode=755")


def mount_scratch(kernel: Kernel, plan: str) -> None:
    """Mount a program's own scratch folder."""
    owner = f",uid={kernel.spare_user},gid={kernel.spare_user}" if plan == "root" else ""
    options = f"size={TMPFS_SIZE},nr_inodes={TMPFS_INODES},mode=700{owner}"
    kernel.mount("scratch", CWD, "tmpfs", MS_NOSUID | MS_NODEV, options)


def unmount_scratch(kernel: Kernel) -> None:
    """Throw a program's scratch folder away, whatever is in it."""
    kernel.unmount(CWD)


def _write(process: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=process)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _build_tree(kernel: Kernel, folder: str, tree: Tree) -> None:
    """Make a tmpfs on ``folder`` the root, with nothing but what programs may see."""
    kernel.mount("none", "/", "", MS_REC | MS_PRIVATE)
    writable = [(path, os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) for path in tree.writable]
    kernel.mount("root", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in tree.links:
        os.symlink(os.readlink(path), folder + path)
    if tree.proc:  # the kernel mounts a new one only where a whole one can be seen
        os.mkdir(folder + "/proc", mode=0o755)
        kernel.mount("/proc", folder + "/proc", "", MS_BIND | MS_REC)
    for path in _outermost([path for path in tree.readable if path not in tree.links]):
        _graft(kernel, folder, path)
    for path, aim in tree.made:
        os.makedirs(os.path.dirname(folder + path), mode=0o755, exist_ok=True)
        os.symlink(aim, folder + path)
    for path, handle in writable:
        os.makedirs(folder + path, mode=0o755, exist_ok=True)
        kernel.bind(f"/proc/self/fd/{handle}", folder + path, read_only=False)
        os.close(handle)
    if tree.scratch:
        os.makedirs(folder + CWD, mode=0o755)
    os.chdir(folder)
    kernel.pivot_root_here()
    kernel.mount("none", "/", "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, "size=1m,mode=755")


def _outermost(paths: Sequence[str]) -> list[str]:
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
    kernel.bind(path, target)
