"""Kernel fences of one program's process: rlimits, no-new-privileges, seccomp, Landlock. Standard library only.

Loaded by the worker by path. Everything that can be prepared is prepared in the zygote; a forked child only pays a few
system calls. The seccomp filter is a deny-list (no processes, programs, sockets, signals to or limits of others,
tracing, namespaces, io_uring...), checked by argument where a call has an honest use.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
SIGKILL, ENOSYS, EPERM = 9, 38, 1
CLONE_THREAD = 0x10000

# clone, clone3, kill, tgkill, prlimit64 and fcntl are checked by argument; the rest are denied outright.
_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "fcntl": 72, "ptrace": 101, "pivot_root": 155,
        "chroot": 161, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170,
        "init_module": 175, "tkill": 200, "io_setup": 206, "clock_settime": 227, "tgkill": 234, "mq_open": 240,
        "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "prlimit64": 302,
        "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "bpf": 321, "execveat": 322, "userfaultfd": 323,
        "perf_event_open": 298, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "socket": 41, "shmget": 29,
        "semget": 64, "msgget": 68, "sched_setaffinity": 203, "sched_setscheduler": 144, "setpriority": 141,
        "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279, "setpgid": 109,
    },
    "aarch64": {
        "clone": 220, "execve": 221, "kill": 129, "fcntl": 25, "ptrace": 117, "pivot_root": 41, "chroot": 51,
        "mount": 40, "umount2": 39, "swapon": 224, "reboot": 142, "sethostname": 161, "init_module": 105, "tkill": 130,
        "io_setup": 0, "clock_settime": 112, "tgkill": 131, "mq_open": 180, "kexec_load": 104, "add_key": 217,
        "request_key": 218, "keyctl": 219, "unshare": 97, "prlimit64": 261, "name_to_handle_at": 264,
        "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "finit_module": 273, "bpf": 280, "execveat": 281, "userfaultfd": 282, "perf_event_open": 241,
        "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "socket": 198, "shmget": 194, "semget": 190, "msgget": 186,
        "sched_setaffinity": 122, "sched_setscheduler": 119, "setpriority": 140, "ioprio_set": 30,
        "migrate_pages": 238, "move_pages": 239, "setpgid": 154,
    },
}  # fmt: skip
# Since 5.0 every architecture shares the numbers of new calls.
_SHARED = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "pidfd_open": 434, "clone3": 435,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "process_mrelease": 448,
}  # fmt: skip
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_ACCESS = (1 << 13) - 1  # ABI 1: those four, remove, and the make_* rights
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


class Guard:
    """The fences, prepared once in the zygote and raised in each child by :meth:`enter`.

    Attributes:
        fences: Names of the fences that this kernel grants: ``seccomp``, ``landlock``.
    """

    def __init__(self, scratch: str) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._prctl, self._syscall = self._libc.prctl, self._libc.syscall
        self._prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
        self._prctl(0, 0, None, 0, 0)  # resolve the symbol before any fork
        machine = platform.machine()
        self._filter = bytearray(build_filter(machine)) if machine in _NUMBERS else None
        self._pid_slots = pid_slots(self._filter) if self._filter else []
        self._ruleset = self._make_ruleset(scratch)
        self.fences: tuple[str, ...] = self._probe()

    def adopt_orphans(self) -> None:
        """Make this process (the zygote) the parent of whatever its children leave behind."""
        self._prctl(PR_SET_CHILD_SUBREAPER, 1, None, 0, 0)

    def enter(self, parent: int, cpu_s: float, memory: int, output: int) -> None:
        """Raise every fence around the calling process (a fresh child of the zygote, single-threaded).

        Raises:
            OSError: a fence that :attr:`fences` promises could not be raised.
        """
        self._prctl(PR_SET_PDEATHSIG, SIGKILL, None, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
        whole = max(1, int(-(-cpu_s // 1)))
        resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if "seccomp" not in self.fences:  # per user, not per process: only where nothing better stops forks
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        self._check(self._prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0), "no-new-privileges")
        if "landlock" in self.fences:
            self._check(self._syscall(_LANDLOCK_RESTRICT, self._ruleset, 0), "landlock")
        if "seccomp" in self.fences:
            self._install_filter()

    @staticmethod
    def _check(returned: int, what: str) -> None:
        if returned != 0:
            raise OSError(ctypes.get_errno(), f"{what} failed")

    def _install_filter(self) -> None:
        code = self._filter
        assert code is not None
        for offset in self._pid_slots:
            struct.pack_into("=I", code, offset, os.getpid())
        buffer = (ctypes.c_char * len(code)).from_buffer(code)
        program = _FilterProgram(len(code) // 8, ctypes.addressof(buffer))
        self._check(self._prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program), 0, 0), "seccomp")

    def _probe(self) -> tuple[str, ...]:
        """Try each fence for real in a throw-away child, because containers refuse some of them."""
        granted = []
        for name, ready in (("seccomp", self._filter is not None), ("landlock", self._ruleset >= 0)):
            if ready and self._survives(name):
                granted.append(name)
        return tuple(granted)

    def _survives(self, name: str) -> bool:
        pid = os.fork()
        if pid == 0:
            try:
                self._check(self._prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0), "no-new-privileges")
                if name == "seccomp":
                    self._install_filter()
                else:
                    self._check(self._syscall(_LANDLOCK_RESTRICT, self._ruleset, 0), "landlock")
            except BaseException:
                os._exit(1)
            os._exit(0)
        return os.waitpid(pid, 0)[1] == 0

    def _make_ruleset(self, scratch: str) -> int:
        """A Landlock ruleset: read the standard library and shared objects, write only below ``scratch``."""
        handled = ctypes.c_uint64(_ALL_ACCESS)
        ruleset = int(self._syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), 0))
        if ruleset < 0:
            return -1
        os.set_inheritable(ruleset, False)
        rules = [(scratch, _ALL_ACCESS & ~_EXECUTE)]
        rules += [(path, _READ_FILE | _READ_DIR) for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64")]
        rules += [(path, _READ_FILE) for path in ("/dev/null", "/dev/urandom", "/dev/zero", "/etc/localtime")]
        rules += [("/usr/share/zoneinfo", _READ_FILE | _READ_DIR), ("/dev/null", _READ_FILE | _WRITE_FILE)]
        for path in sys.path:
            rules += _library_rules(path)
        for path, access in rules:
            self._add_rule(ruleset, path, access)
        return ruleset

    def _add_rule(self, ruleset: int, path: str, access: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not os.path.isdir(path):
                access &= _EXECUTE | _WRITE_FILE | _READ_FILE
            rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor))
            self._syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0)
        finally:
            os.close(descriptor)


def _library_rules(path: str) -> list[tuple[str, int]]:
    """Read rights for one standard-library folder, its third-party subfolders left out."""
    if not os.path.isdir(path):
        return [(path, _READ_FILE)]
    rules = [(path, _READ_DIR)]
    for entry in os.scandir(path):
        if entry.name not in ("site-packages", "dist-packages"):
            rules.append((entry.path, _READ_FILE | (_READ_DIR if entry.is_dir() else 0)))
    return rules


_PID_MARK = 0x7A57_11ED  # stands for the child's own pid until it is known


_Line = tuple[int, str, str, int]  # operation, label if true, label if false ("" = next line), operand


def build_filter(machine: str) -> bytes:
    """Assemble the seccomp program for ``machine`` (``x86_64`` or ``aarch64``); the own pid is a placeholder.

    The layout is head, a search tree over the system calls that are not simply allowed (half the cost of a list), one
    block per argument-checked call, and the four verdicts at the end.
    """
    numbers = {**_NUMBERS[machine], **_SHARED}
    special = {"clone": "clone", "clone3": "nosys", "kill": "self", "tgkill": "self", "prlimit64": "limits"}
    routes = sorted((number, {**special, "fcntl": "fcntl"}.get(name, "deny")) for name, number in numbers.items())
    lines: list[tuple[str, _Line]] = [
        ("", (_LOAD, "", "", 4)), ("", (_JEQ, "", "kill", _AUDIT_ARCH[machine])), ("", (_LOAD, "", "", 0)),
        ("", (_JGE, "deny", "", 0x40000000)),
    ]  # fmt: skip
    lines += _search_tree(routes)
    own = [(_LOAD, "", "", 16), (_JEQ, "allow", "deny", _PID_MARK)]
    limits = [(_LOAD, "", "", 16), (_JEQ, "allow", "deny", 0)]
    threads = [(_LOAD, "", "", 16), (_JSET, "allow", "deny", CLONE_THREAD)]
    owners = [(_JEQ, "deny", "", command) for command in (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX)]
    fcntl = [(_LOAD, "", "", 24), *owners, (_RET, "", "", _ALLOW)]
    for label, block in {"clone": threads, "self": own, "limits": limits, "fcntl": fcntl}.items():
        lines += [(label if index == 0 else "", line) for index, line in enumerate(block)]
    verdicts = {"allow": _ALLOW, "deny": _ERRNO | EPERM, "nosys": _ERRNO | ENOSYS, "kill": _KILL}
    lines += [(label, (_RET, "", "", verdict)) for label, verdict in verdicts.items()]
    return _link(lines)


def _search_tree(routes: list[tuple[int, str]], label: str = "") -> list[tuple[str, _Line]]:
    """Compare-and-jump lines that find a number's label; a number not listed is allowed."""
    middle = len(routes) // 2
    if middle == 0:
        return [(label, (_JEQ, routes[0][1], "allow", routes[0][0]))]
    right = f"from {routes[middle][0]}"
    head = (label, (_JGE, right, "", routes[middle][0]))
    return [head, *_search_tree(routes[:middle]), *_search_tree(routes[middle:], right)]


def _link(lines: list[tuple[str, _Line]]) -> bytes:
    labels = {label: index for index, (label, _) in enumerate(lines) if label}
    code = b""
    for index, (_, (operation, yes, no, operand)) in enumerate(lines):
        jumps = [labels[target] - index - 1 if target else 0 for target in (yes, no)]
        code += struct.pack("=HBBI", operation, *jumps, operand)
    return code


def pid_slots(code: bytes | bytearray) -> list[int]:
    """Byte offsets in the filter where the child's own pid belongs."""
    return [at + 4 for at in range(0, len(code), 8) if struct.unpack_from("=I", code, at + 4)[0] == _PID_MARK]
