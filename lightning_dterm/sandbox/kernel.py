"""System calls that Python has no function for, and what isolates a process with them. Standard library only.

Everything here works by ``ctypes`` on the C library of the running interpreter. Symbols are resolved when
:class:`Kernel` is made, because resolving them in a forked child costs more than the calls.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence

from lightning_dterm.sandbox.syscalls import NUMBERS

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SIGKILL = 9
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | (1 << 14) | (1 << 15)  # and truncate, ioctl on devices
_CAPABILITIES_V3 = 0x20080522


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


class Kernel:
    """The isolating system calls; every method raises ``OSError`` naming the call that failed.

    Attributes:
        machine: ``x86_64`` or ``aarch64``; None on others, whose call numbers are not known here.
        landlock_abi: Landlock version of the kernel, 0 where there is none.
    """

    def __init__(self) -> None:
        libc = ctypes.PyDLL(None, use_errno=True)
        self._prctl, self._syscall, self._unshare = libc.prctl, libc.syscall, libc.unshare
        self._mount, self._umount = libc.mount, libc.umount2
        self._prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
        self._mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
        machine = platform.machine()
        self.machine = machine if machine in NUMBERS else None
        self.landlock_abi = max(0, int(self._syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))
        self._header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITIES_V3, 0))
        self._nothing = ctypes.create_string_buffer(24)

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

    def bind_read_only(self, source: str, target: str) -> None:
        """Bind-mount a file or folder, with what is mounted below it; then forbid writing, devices and set-uid."""
        self.mount(source, target, "", MS_BIND | MS_REC)
        kept = os.statvfs(target).f_flag & (MS_NOEXEC | 0x400 | 0x800 | 0x1000)  # noatime, nodiratime, relatime
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | (0x1000 << 9 if kept & 0x1000 else 0) | (kept & 0xC08)
        if not os.path.isdir(target):
            self.mount("none", target, "", flags)  # a device file must stay usable
        else:
            self.mount("none", target, "", flags | MS_NODEV)

    def unmount(self, target: str) -> None:
        """Detach a mount at once, whatever still uses it."""
        self._check(self._umount(os.fsencode(target), MNT_DETACH), f"unmount {target}")

    def pivot_root_here(self) -> None:
        """Make the current folder, a mount point, the root, and detach the old one."""
        assert self.machine is not None
        self._check(self._syscall(NUMBERS[self.machine]["pivot_root"], b".", b"."), "pivot_root")
        self.unmount(".")
        os.chdir("/")

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


def set_limits(cpu_s: float, memory: int, output: int, descriptors: int = 32, processes: int | None = None) -> None:
    """Set the resource limits of this process.

    Args:
        cpu_s: CPU seconds, rounded up to whole ones (SIGXCPU; SIGKILL a second later).
        memory: Address space in bytes.
        output: Largest size of a file in bytes (SIGXFSZ).
        descriptors: Open files.
        processes: Processes and threads of this *user* (of this user namespace, where it has one).
    """
    whole = max(1, int(-(-cpu_s // 1)))
    limits = {
        resource.RLIMIT_CPU: (whole, whole + 1), resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (output, output), resource.RLIMIT_NOFILE: (descriptors, descriptors),
        resource.RLIMIT_CORE: (0, 0),
    }  # fmt: skip
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = (processes, processes)
    for which, pair in limits.items():
        resource.setrlimit(which, pair)
