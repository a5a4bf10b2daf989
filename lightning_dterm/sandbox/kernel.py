"""System calls that Python has no function for, and what isolates a process with them. Standard library only.

Everything here works by ``ctypes`` on the C library of the running interpreter. Symbols are resolved when
:class:`Kernel` is made, because resolving them in a forked child costs more than the calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import resource
import struct
import time
from collections.abc import Sequence

from lightning_dterm.sandbox.syscalls import NUMBERS

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_PR_CAPBSET_DROP = 24
SIGKILL = 9
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | (1 << 14) | (1 << 15)  # and truncate, ioctl on devices
_CAPABILITIES_V3 = 0x20080522
_FIRST_SPARE_USER = 1_900_000_000  # above every range that systems and container managers hand out
NOBODY = 65534


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


class Kernel:
    """The isolating system calls; every method raises ``OSError`` naming the call that failed.

    Attributes:
        machine: ``x86_64`` or ``aarch64``; None on others, whose call numbers are not known here.
        landlock_abi: Landlock version of the kernel, 0 where there is none.
        spare_user: A uid and gid that nobody else on this machine has, for programs where this process is root;
            nobody's where this process could not become it.
    """

    def __init__(self) -> None:
        libc = ctypes.PyDLL(None, use_errno=True)
        self._prctl, self._syscall, self._unshare = libc.prctl, libc.syscall, libc.unshare
        self._mount, self._umount = libc.mount, libc.umount2
        self._prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
        self._mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
        machine = os.uname().machine
        self.machine = machine if machine in NUMBERS else None
        self.landlock_abi = max(0, int(self._syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))
        self.spare_user = _spare_user()
        self._last_capability = int(_first_word("/proc/sys/kernel/cap_last_cap") or 40)
        self._header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITIES_V3, 0))
        self._nothing = ctypes.create_string_buffer(24)

    @property
    def has_spare_user(self) -> bool:
        """Whether :attr:`spare_user` is nobody else's."""
        return self.spare_user != NOBODY

    @staticmethod
    def _check(returned: int, what: str) -> int:
        if returned < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")
        return returned

    def prctl(self, operation: int, argument: int, pointer: int | None = None, what: str = "prctl") -> None:
        """``prctl(operation, argument, pointer, 0, 0)``."""
        self._check(self._prctl(operation, argument, pointer, 0, 0), what)

    def unshare(self, flags: int) -> None:
        """Leave the namespaces named by ``flags``; a user namespace needs a single-threaded process."""
        self._check(self._unshare(flags), "unshare")

    def mount(self, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        """``mount(2)``."""
        arguments = [os.fsencode(text) for text in (source, target, kind)]
        self._check(self._mount(*arguments, flags, os.fsencode(data)), f"mount on {target}")

    def bind(self, source: str, target: str, read_only: bool = True) -> None:
        """Bind-mount a file or folder, with what is mounted below it; then forbid devices and set-uid, and writing."""
        self.mount(source, target, "", MS_BIND | MS_REC)
        kept = os.statvfs(target).f_flag & (MS_NOEXEC | 0x400 | 0x800 | 0x1000)  # noatime, nodiratime, relatime
        flags = MS_REMOUNT | MS_BIND | MS_NOSUID | (0x1000 << 9 if kept & 0x1000 else 0) | (kept & 0xC08)
        flags |= MS_RDONLY if read_only else 0
        if os.path.isdir(target):  # a device file must stay usable
            flags |= MS_NODEV
        self.mount("none", target, "", flags)

    def unmount(self, target: str) -> None:
        """Detach a mount at once, whatever still uses it."""
        self._check(self._umount(os.fsencode(target), MNT_DETACH), f"unmount {target}")

    def pivot_root_here(self) -> None:
        """Make the current folder, a mount point, the root, and detach the old one."""
        assert self.machine is not None
        self._check(self._syscall(NUMBERS[self.machine]["pivot_root"], b".", b"."), "pivot_root")
        self.unmount(".")
        os.chdir("/")

    def forbid_capabilities(self) -> None:
        """Let this process and its children gain no capability by exec; those it has stay."""
        for capability in range(self._last_capability + 1):
            if self._prctl(_PR_CAPBSET_DROP, capability, None, 0, 0) != 0:
                return  # no right to drop means there is nothing to drop

    def drop_capabilities(self) -> None:
        """Give up every capability (effective, permitted, inheritable, and with them ambient)."""
        if self.machine is not None:
            number = NUMBERS[self.machine]["capset"]
            self._check(self._syscall(number, ctypes.byref(self._header), ctypes.byref(self._nothing)), "capset")

    def die_with_parent(self) -> None:
        """Have the kernel kill this process when its parent ends."""
        self.prctl(PR_SET_PDEATHSIG, SIGKILL)

    def adopt_orphans(self) -> None:
        """Make this process the parent of whatever its children leave behind."""
        self.prctl(PR_SET_CHILD_SUBREAPER, 1)

    @staticmethod
    def offer_to_the_oom_killer() -> None:
        """Where memory runs out, have the kernel end this process or its children first, not the trainer."""
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")

    def no_new_privileges(self) -> None:
        """Forbid privileges by exec; seccomp and Landlock need it."""
        self.prctl(PR_SET_NO_NEW_PRIVS, 1, what="no-new-privileges")

    def install_filter(self, code: bytearray) -> None:
        """Install a seccomp program (see :mod:`lightning_dterm.sandbox.seccomp`) for good."""
        buffer = (ctypes.c_char * len(code)).from_buffer(code)
        program = _FilterProgram(len(code) // 8, ctypes.addressof(buffer))
        self.prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program), what="seccomp")

    def make_ruleset(self, rules: Sequence[tuple[str, int]]) -> int:
        """A Landlock ruleset that grants only ``rules``: (path, rights), rights as in :data:`READ_FILE`, -1 for all.

        Rights that this kernel does not know are left out, and so are paths that do not exist. TCP, abstract Unix
        sockets and signals to processes outside are refused too where the kernel can (ABI 4 and 6).

        Returns:
            A descriptor for :meth:`restrict_files`.
        """
        abi = self.landlock_abi
        rights = self.file_rights
        attributes = struct.pack("=QQQ", rights, 3, 3)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        ruleset = self._check(self._syscall(_LANDLOCK_CREATE, buffer, ctypes.c_size_t(len(attributes)), 0), "landlock")
        os.set_inheritable(ruleset, False)
        for path, access in rules:
            self._add_rule(ruleset, path, access & rights)
        return ruleset

    @property
    def file_rights(self) -> int:
        """Every right on files that this kernel's Landlock knows."""
        abi = self.landlock_abi
        return (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1

    def _add_rule(self, ruleset: int, path: str, access: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not os.path.isdir(path):
                access &= _LANDLOCK_FILE_RIGHTS
            rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor), 12)
            self._check(self._syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"Landlock rule for {path}")
        finally:
            os.close(descriptor)

    def restrict_files(self, ruleset: int) -> None:
        """Hold this process to a ruleset for good."""
        self._check(self._syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock")


def become(user: int) -> None:
    """Give up root for ``user``, with every group; the kernel then takes the capabilities and clears PDEATHSIG."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def counts_processes_alone() -> bool:
    """Whether RLIMIT_NPROC counts per user namespace (Linux >= 5.14), not all that a user runs on the machine."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (5, 14)


def _spare_user() -> int:
    user = _FIRST_SPARE_USER + os.getpid()
    return user if all(_is_mapped(user, name) for name in ("uid_map", "gid_map")) else NOBODY


def _is_mapped(user: int, name: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/self/{name}", encoding="ascii") as file:
        rows = [[int(word) for word in line.split()] for line in file]
        return any(first <= user < first + count for first, _, count in rows)
    return False


def _first_word(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().split()[0]
    return ""


def set_limits(
    cpu_s: float,
    memory: int,
    output: int,
    descriptors: int = 32,
    processes: int | None = None,
    data: int = 0,
    stack: int = 0,
) -> None:
    """Set the resource limits of this process.

    Args:
        cpu_s: CPU seconds, rounded up to whole ones, after which SIGXCPU comes; whoever watches this process has to
            end one that lives on, see :func:`overspent`. Not the kernel: it counts by the tick of its clock, so that a
            program which only works while that ticks could have itself killed long before it used its seconds, and
            who is killed without a reason that we know is not to blame.
        memory: Address space in bytes; 0 leaves it.
        output: Largest size of a file in bytes (SIGXFSZ).
        descriptors: Open files.
        processes: Processes and threads of this *user* (of this user namespace, where it has one).
        data: Private writable memory in bytes; 0 leaves it.
        stack: Main stack in bytes, at most what this process may have; 0 leaves it.
    """
    last = resource.getrlimit(resource.RLIMIT_CPU)[1]
    seconds = _whole(cpu_s) if last == resource.RLIM_INFINITY else min(_whole(cpu_s), last)
    limits = {
        resource.RLIMIT_CPU: (seconds, last), resource.RLIMIT_FSIZE: (output, output),
        resource.RLIMIT_NOFILE: (descriptors, descriptors), resource.RLIMIT_CORE: (0, 0),
    }  # fmt: skip
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if stack and hard != resource.RLIM_INFINITY:
        stack = min(stack, hard)
    for which, size in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_DATA, data),
        (resource.RLIMIT_STACK, stack),
        (resource.RLIMIT_NPROC, processes),
    ):
        if size or (which == resource.RLIMIT_NPROC and size is not None):
            limits[which] = (size, size)
    for which, pair in limits.items():
        resource.setrlimit(which, pair)


def overspent(process: int, cpu_s: float) -> bool:
    """Whether a process that was to be ended by its CPU limit (see :func:`set_limits`) lives a second beyond it."""
    clock = ~process << 3 | 2  # the kernel's name of the clock of all threads of ``process``
    return time.clock_gettime(clock) >= _whole(cpu_s) + 1


def _whole(cpu_s: float) -> int:
    return max(1, math.ceil(cpu_s))
