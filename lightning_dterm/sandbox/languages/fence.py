"""Kernel fences of the exec profile: what surrounds a compiler or a compiled program. Standard library only.

Loaded by the launcher by path. Two profiles share one allow-list of system calls: ``program`` may become one other
program, once, and start threads; ``tools`` (the drivers of gcc, Go...) may also start processes. Neither gets sockets,
tracing, namespaces, mounts, io_uring, keys, signals to or limits of others.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from lightning_dterm.sandbox.languages import syscalls
else:
    import syscalls  # put in sys.modules by the launcher

EXEC_FD = 900  # beyond RLIMIT_NOFILE: once closed by exec, no program can make this number again
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 22, 24, 36
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
SIGCHLD, SIGKILL, EPERM, ENOSYS = 17, 9, 1, 38
CLONE_THREAD, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000, 1 << 29, 1 << 28, 1 << 30, 1 << 27
_CLONE_NAMESPACES = 0x7E020080
_AT_EMPTY_PATH = 0x1000
_CAPABILITIES_V3 = 0x20080522
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _JUMP, _JEQ, _JGE, _JSET, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | (1 << 14) | (1 << 15)  # and truncate, ioctl on devices
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_PRCTLS = (3, 15, 16, 23, 29, 30, 0x53564D41)  # dumpable?, names, capability?, timer slack, name of a mapping
_FCNTL_REFUSED = (8, 10, 15, 1024, 1026)  # SETOWN, SETSIG, SETOWN_EX, SETLEASE, NOTIFY: signals to others
_PROCESSES = frozenset({"fork", "vfork", "execve", "wait4", "waitid"})
# Modes and times of files, and cutting them by name: Landlock (the last before ABI 3) does not watch those.
_ATTRIBUTES = frozenset({"chmod", "fchmod", "fchmodat", "utimensat", "truncate"})
_TOOLS_ONLY = _PROCESSES | _ATTRIBUTES
_REFUSED = frozenset({"signalfd4", "inotify_init1", "capget"})

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


# --- seccomp ----------------------------------------------------------------------------------------------------------


def build_filter(machine: str, profile: str, own: int) -> bytes:
    """Assemble the seccomp program of ``profile`` (``program`` or ``tools``) for the process ``own``.

    Raises:
        KeyError: no table for ``machine``.
    """
    actions = _actions(profile, own)
    table: dict[int, list[Instruction]] = {}
    for name, number in syscalls.NUMBERS[machine].items():
        table[number] = actions.get(name, [_answer(_ALLOW)])
    deny = [_answer(_ERRNO | EPERM)]
    bounds: list[tuple[int, list[Instruction]]] = []
    for number in range(max(table) + 2):
        action = table.get(number, deny)
        if not bounds or bounds[-1][1] != action:
            bounds.append((number, action))
    head: list[Instruction] = [
        (_LOAD, 0, 0, 4), (_JEQ, 1, 0, syscalls.AUDIT_ARCH[machine]), _answer(_KILL), (_LOAD, 0, 0, 0),
    ]  # fmt: skip
    return b"".join(struct.pack("=HBBI", *line) for line in head + _tree(bounds))


def _answer(verdict: int) -> Instruction:
    return (_RET, 0, 0, verdict)


def _tree(bounds: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Binary search over half-open ranges of numbers, each leaf its own verdict: half the cost of a list."""
    if len(bounds) == 1:
        return bounds[0][1]
    middle = len(bounds) // 2
    left, right = _tree(bounds[:middle]), _tree(bounds[middle:])
    if len(left) <= 255:
        return [(_JGE, len(left), 0, bounds[middle][0]), *left, *right]
    return [(_JGE, 0, 1, bounds[middle][0]), (_JUMP, 0, 0, len(left)), *left, *right]


def _one_of(argument: int, values: tuple[int, ...], listed: int, other: int) -> list[Instruction]:
    """Answer ``listed`` where an argument is among ``values``, else ``other``."""
    lines: list[Instruction] = [(_LOAD, 0, 0, 16 + 8 * argument)]
    lines += [(_JEQ, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [*lines, _answer(other), _answer(listed)]


def _actions(profile: str, own: int) -> dict[str, list[Instruction]]:
    refuse, allow = _ERRNO | EPERM, _ALLOW
    tools = profile == "tools"
    denied = [_answer(refuse)]
    thread_only: list[Instruction] = [] if tools else [(_JSET, 1, 0, CLONE_THREAD)]
    clone = [(_LOAD, 0, 0, 16), (_JSET, 1, 0, _CLONE_NAMESPACES), *thread_only]
    clone += [_answer(allow), _answer(refuse)] if tools else [_answer(refuse), _answer(allow)]
    once: list[Instruction] = [
        (_LOAD, 0, 0, 16), (_JEQ, 0, 3, EXEC_FD), (_LOAD, 0, 0, 48), (_JEQ, 0, 1, _AT_EMPTY_PATH), _answer(allow),
        _answer(refuse),
    ]  # fmt: skip
    read_limits: list[Instruction] = [
        (_LOAD, 0, 0, 16), (_JEQ, 0, 5, 0), (_LOAD, 0, 0, 32), (_JEQ, 0, 3, 0), (_LOAD, 0, 0, 36), (_JEQ, 0, 1, 0),
        _answer(allow), _answer(refuse),
    ]  # fmt: skip
    actions: dict[str, list[Instruction]] = {
        "clone": clone,
        "clone3": [_answer(_ERRNO | ENOSYS)],
        "kill": denied if tools else _one_of(0, (own,), allow, refuse),
        "tgkill": [_answer(allow)] if tools else _one_of(0, (own,), allow, refuse),
        "execveat": once,
        "prlimit64": read_limits,
        "fcntl": _one_of(1, _FCNTL_REFUSED, refuse, allow),
        "ioctl": _one_of(1, _IOCTLS, allow, refuse),
        "socketpair": _one_of(0, (1,), allow, refuse),  # AF_UNIX: the JVM needs a pair that leads nowhere
        "prctl": _one_of(0, _PRCTLS, allow, refuse),
    }
    actions.update(dict.fromkeys(_REFUSED, denied))
    if not tools:
        actions.update(dict.fromkeys(_TOOLS_ONLY, denied))
    return actions


# --- everything else --------------------------------------------------------------------------------------------------


class Fence:
    """Raises the fences around a process that is about to become a compiler or a program.

    Attributes:
        machine: Processor architecture, None where this module has no table for it.
        landlock_abi: Landlock version of the kernel, 0 where there is none.
    """

    def __init__(self) -> None:
        self._libc = ctypes.PyDLL(None, use_errno=True)
        self._prctl, self._syscall = self._libc.prctl, self._libc.syscall
        self._prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
        self._prctl(0, 0, None, 0, 0)
        machine = platform.machine()
        self.machine = machine if machine in syscalls.NUMBERS else None
        self.landlock_abi = max(0, int(self._syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))
        self._last_capability = _last_capability()

    def adopt_orphans(self) -> None:
        """Make this process the parent of whatever its children leave behind."""
        self._prctl(PR_SET_CHILD_SUBREAPER, 1, None, 0, 0)

    def die_with_parent(self) -> None:
        """Have the kernel kill this process when its parent ends."""
        self._prctl(PR_SET_PDEATHSIG, SIGKILL, None, 0, 0)

    def unshare(self, flags: int) -> bool:
        """Leave namespaces; False where the kernel refuses."""
        return int(self._libc.unshare(flags)) == 0

    def clone(self, flags: int) -> int:
        """``fork`` with namespace ``flags``: 0 in the child, its pid in the parent.

        Raises:
            OSError: refused.
        """
        pid = int(self._syscall(syscalls.CLONE[self.machine or ""], flags | SIGCHLD, 0, 0, 0, 0))
        if pid < 0:
            raise OSError(ctypes.get_errno(), "clone failed")
        return pid

    def ruleset(self, rules: list[tuple[str, str]]) -> int:
        """A Landlock ruleset of (path, rights): ``r`` read, ``x`` read and execute, ``w`` read and write, ``n`` the
        null device, ``d`` another device.

        Paths that do not exist are left out. Returns a descriptor, -1 without Landlock.
        """
        if not self.landlock_abi:
            return -1
        everything = (1 << (13 + (self.landlock_abi >= 2) + (self.landlock_abi >= 3) + (self.landlock_abi >= 5))) - 1
        handled = ctypes.c_uint64(everything)
        ruleset = int(self._syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), 0))
        if ruleset < 0:
            return -1
        os.set_inheritable(ruleset, False)
        reading = READ_FILE | READ_DIR
        rights = {
            "r": reading,
            "x": reading | EXECUTE,
            "w": everything & ~EXECUTE,
            "n": READ_FILE | WRITE_FILE,
            "d": READ_FILE,
        }
        for path, right in rules:
            self._add_rule(ruleset, path, rights[right])
        return ruleset

    def _add_rule(self, ruleset: int, path: str, access: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if not os.path.isdir(path):
                access &= _FILE_RIGHTS
            rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor))
            self._check(self._syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0), f"Landlock rule for {path}")
        finally:
            os.close(descriptor)

    def enter(self, profile: str, ruleset: int, fences: frozenset[str]) -> None:
        """Drop capabilities, forbid new privileges, restrict files and system calls.

        Raises:
            OSError: a fence named in ``fences`` could not be raised.
        """
        self._drop_capabilities()
        self._check(self._prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0), "no-new-privileges")
        if "landlock" in fences:
            self._check(self._syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
        if "seccomp" in fences:
            code = build_filter(self.machine or "", profile, os.getpid())
            buffer = ctypes.create_string_buffer(code, len(code))
            program = _FilterProgram(len(code) // 8, ctypes.addressof(buffer))
            self._check(self._prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program), 0, 0), "seccomp")

    def _drop_capabilities(self) -> None:
        for capability in range(self._last_capability + 1):
            if self._prctl(PR_CAPBSET_DROP, capability, None, 0, 0) != 0:
                break  # no right to drop means there is nothing to drop
        self._prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, None, 0, 0)
        header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITIES_V3, 0))
        nothing = ctypes.create_string_buffer(24)
        if self.machine is not None:
            self._syscall(syscalls.CAPSET[self.machine], ctypes.byref(header), ctypes.byref(nothing))

    @staticmethod
    def _check(returned: int, what: str) -> None:
        if returned != 0:
            raise OSError(ctypes.get_errno(), f"{what} failed")


def _last_capability() -> int:
    try:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 40


def limit(cpu_s: float, memory: int, data: int, file_size: int, descriptors: int, stack: int) -> None:
    """Set the resource limits of this process; sizes in bytes, 0 leaves address space or data unlimited."""
    whole = max(1, int(-(-cpu_s // 1)))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if data:
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = stack if hard == resource.RLIM_INFINITY else min(stack, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
