"""Seccomp allow-lists with argument checks, assembled as a search tree. Pure: bytes out. Standard library only.

A filter kills calls of a foreign architecture, refuses everything not on its list with EPERM (``clone3`` and numbers
newer than the tables with ENOSYS, so that C libraries fall back), and answers listed calls by number alone or, for the
calls in :func:`argument_checks`, by their arguments. Arguments are compared in the width that the kernel reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from lightning_dterm.sandbox.syscalls import AUDIT_ARCH, NUMBERS

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
PID_MARK = 0x7A57_11ED  # stands for the process's own pid until it is known
CLONE_THREAD = 0x10000
AF_UNIX = 1
EXEC_FD = 900
"""The one descriptor that a program may become, beyond RLIMIT_NOFILE: closed by exec, nobody can make it again."""
_AT_EMPTY_PATH = 0x1000
_CLONE_NAMESPACES = 0x7E020080
_CLONE_REFUSED = _CLONE_NAMESPACES | 0xE000  # and ptrace, vfork, parent
_SIGKILL, _SIGSTOP = 9, 19
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)  # dup, flags, locks, pipe size, seals (reading)
_PRCTLS = (15, 16, 0x53564D41)  # names of threads and of mappings
_RUNTIME_PRCTLS = (3, 23, 29, 30)  # dumpable?, capability?, timer slack
_RLIMIT_STACK = 3
_LOAD, _JUMP, _JEQ, _JGE, _JSET, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand

_PYTHON = """
    read write open close stat fstat lstat newfstatat statx poll ppoll select pselect6 lseek mmap mprotect
    munmap brk mremap msync mincore madvise rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
    rt_sigtimedwait rt_sigsuspend sigaltstack ioctl pread64 pwrite64 readv writev preadv pwritev preadv2
    pwritev2 access faccessat faccessat2 pipe pipe2 sched_yield dup dup2 dup3 pause nanosleep clock_nanosleep
    clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm getpid getppid gettid getuid
    geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid uname sysinfo getrusage
    getrlimit prlimit64 setrlimit getpriority sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min getcpu sendfile copy_file_range clone clone3 exit exit_group
    wait4 waitid kill tgkill fcntl flock fsync fdatasync ftruncate fallocate getdents getdents64 getcwd chdir
    fchdir rename renameat renameat2 mkdir mkdirat rmdir creat openat link linkat unlink unlinkat symlink
    symlinkat readlink readlinkat umask statfs fstatfs fadvise64 getxattr lgetxattr fgetxattr listxattr
    llistxattr flistxattr prctl arch_prctl futex set_tid_address restart_syscall set_robust_list get_robust_list
    rseq membarrier getrandom epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd
    eventfd2 close_range
"""
PYTHON_CALLS: frozenset[str] = frozenset(_PYTHON.split())
"""What a Python program without sockets, processes or privileges may ask for.

Nothing that changes modes, owners, times or attributes of files: Landlock does not watch those.
"""

_PYTHON_ONLY = """
    getgroups getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr link linkat symlink symlinkat preadv2
    pwritev2 setrlimit wait4 waitid
"""
_PROGRAM_ONLY = """
    execveat socketpair splice mlock munlock pkey_alloc pkey_free pkey_mprotect timerfd_create timerfd_gettime
    timerfd_settime
"""
_TOOLS_ONLY = "fork vfork execve wait4 waitid chmod fchmod fchmodat utimensat truncate"
PROGRAM_CALLS: frozenset[str] = (PYTHON_CALLS - frozenset(_PYTHON_ONLY.split())) | frozenset(_PROGRAM_ONLY.split())
"""What a compiled program or a language's runtime may ask for: no processes, no second program, threads only.

Nor ``timer_create``, whose timers may send SIGKILL: a SIGKILL always comes from outside.
"""
TOOLS_CALLS: frozenset[str] = PROGRAM_CALLS | frozenset(_TOOLS_ONLY.split())
"""What a compiler driver may ask for: processes too, and changes to the files in its own folder."""


def build_filter(
    machine: str,
    allowed: Iterable[str] = PYTHON_CALLS,
    own_pid: int = PID_MARK,
    checks: Mapping[str, list[Instruction]] | None = None,
) -> bytes:
    """Assemble the seccomp program of ``machine``.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        allowed: Names of the calls to allow; names that the machine does not have are left out.
        own_pid: The only process that ``kill`` and ``tgkill`` may name; by default a mark, see :func:`pid_slots`.
        checks: Further or other argument checks by name, each a block that answers (see :func:`only_if`).

    Raises:
        KeyError: no table for ``machine``.
        ValueError: a name that no machine has.
    """
    names = frozenset(allowed)
    if unknown := names - {name for table in NUMBERS.values() for name in table}:
        raise ValueError(f"unknown system calls: {', '.join(sorted(unknown))}")
    numbers = NUMBERS[machine]
    blocks = {**argument_checks(own_pid), **(checks or {})}
    table = {numbers[name]: blocks.get(name, [answer(ALLOW)]) for name in names if name in numbers}
    deny, unheard_of = [answer(ERRNO | EPERM)], [answer(ERRNO | ENOSYS)]
    bounds: list[tuple[int, list[Instruction]]] = []
    newest = max(numbers.values())
    for number in range(newest + 2):
        block = table.get(number, deny if number <= newest else unheard_of)
        if not bounds or bounds[-1][1] != block:
            bounds.append((number, block))
    bounds.append((0x4000_0000, deny))  # x32 calls on x86-64, which share the architecture
    head: list[Instruction] = [
        (_LOAD, 0, 0, 4), (_JEQ, 1, 0, AUDIT_ARCH[machine]), answer(KILL), (_LOAD, 0, 0, 0),
    ]  # fmt: skip
    return b"".join(struct.pack("=HBBI", *line) for line in [*head, *_tree(bounds)])


def pid_slots(code: bytes | bytearray) -> list[int]:
    """Byte offsets in the filter where the process's own pid belongs."""
    return [at + 4 for at in range(0, len(code), 8) if struct.unpack_from("=I", code, at + 4)[0] == PID_MARK]


def answer(verdict: int) -> Instruction:
    """End the filter with a verdict: :data:`ALLOW`, :data:`KILL` or ``ERRNO | number``."""
    return (_RET, 0, 0, verdict)


def only_if(argument: int, values: Iterable[int], then: list[Instruction] | None = None) -> list[Instruction]:
    """Allow (or go on with ``then``) where the low 32 bits of an argument are among ``values``; refuse otherwise."""
    wanted = tuple(values)
    lines: list[Instruction] = [(_LOAD, 0, 0, 16 + 8 * argument)]
    lines += [(_JEQ, len(wanted) - index, 0, value) for index, value in enumerate(wanted)]
    return [*lines, answer(ERRNO | EPERM), *(then or [answer(ALLOW)])]


def never_if(argument: int, values: Iterable[int]) -> list[Instruction]:
    """Refuse where the low 32 bits of an argument are among ``values``; allow otherwise."""
    wanted = tuple(values)
    lines: list[Instruction] = [(_LOAD, 0, 0, 16 + 8 * argument)]
    lines += [(_JEQ, len(wanted) - index, 0, value) for index, value in enumerate(wanted)]
    return [*lines, answer(ALLOW), answer(ERRNO | EPERM)]


def argument_checks(own_pid: int) -> dict[str, list[Instruction]]:
    """Blocks for the calls whose arguments matter, by name.

    ``clone`` only starts threads; ``kill`` and ``tgkill`` only name the own process, with neither SIGKILL nor SIGSTOP
    (so that a SIGKILL always comes from outside); ``prlimit64`` and ``setrlimit`` read own limits and set the stack's;
    ``fcntl`` cannot ask for signals; ``ioctl`` and ``prctl`` are short lists; ``open`` cannot truncate what it opens
    for reading (Landlock before Linux 6.2 would not notice).
    """
    refuse, allow = answer(ERRNO | EPERM), answer(ALLOW)
    deadly = (_SIGKILL, _SIGSTOP)
    limits: list[Instruction] = [
        (_LOAD, 0, 0, 16), (_JEQ, 0, 7, 0),  # the own process
        (_LOAD, 0, 0, 24), (_JEQ, 4, 0, _RLIMIT_STACK),
        (_LOAD, 0, 0, 32), (_JEQ, 0, 3, 0), (_LOAD, 0, 0, 36), (_JEQ, 0, 1, 0),  # no new value
        allow, refuse,
    ]  # fmt: skip
    return {
        "clone": [(_LOAD, 0, 0, 16), (_JSET, 1, 0, _CLONE_REFUSED), (_JSET, 1, 0, CLONE_THREAD), refuse, allow],
        "clone3": [answer(ERRNO | ENOSYS)],
        "open": _no_truncation(1),
        "openat": _no_truncation(2),
        "kill": only_if(0, (own_pid,), never_if(1, deadly)),
        "tgkill": only_if(0, (own_pid,), never_if(2, deadly)),
        "prlimit64": limits,
        "setrlimit": only_if(0, (_RLIMIT_STACK,)),
        "fcntl": only_if(1, _FCNTLS),
        "ioctl": only_if(1, _IOCTLS),
        "prctl": only_if(0, _PRCTLS),
    }


def program_checks() -> dict[str, list[Instruction]]:
    """Argument checks of :data:`PROGRAM_CALLS`, beyond those of :func:`argument_checks`.

    ``execveat`` only of :data:`EXEC_FD`; ``socketpair`` only of Unix sockets (the JVM needs a pair that leads nowhere).
    """
    return {
        "execveat": only_if(0, (EXEC_FD,), only_if(4, (_AT_EMPTY_PATH,))),
        "socketpair": only_if(0, (AF_UNIX,)),
        "prctl": only_if(0, (*_PRCTLS, *_RUNTIME_PRCTLS)),
    }


def tools_checks() -> dict[str, list[Instruction]]:
    """Argument checks of :data:`TOOLS_CALLS`: ``clone`` makes processes but no namespaces; signals are for oneself.

    A filter outlives the fork of a driver, so ``tgkill`` cannot name one process; with Landlock (ABI 6) or a process
    namespace it reaches nobody outside, and never with SIGKILL or SIGSTOP.
    """
    refuse, allow = answer(ERRNO | EPERM), answer(ALLOW)
    return {
        **program_checks(),
        "clone": [(_LOAD, 0, 0, 16), (_JSET, 0, 1, _CLONE_NAMESPACES), refuse, allow],
        "kill": [refuse],
        "tgkill": never_if(2, (_SIGKILL, _SIGSTOP)),
    }


def _no_truncation(flags: int) -> list[Instruction]:
    """Refuse O_TRUNC without O_WRONLY or O_RDWR."""
    return [
        (_LOAD, 0, 0, 16 + 8 * flags), (_JSET, 2, 0, 3), (_JSET, 0, 1, 0o1000), answer(ERRNO | EPERM), answer(ALLOW),
    ]  # fmt: skip


def _tree(bounds: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Binary search over half-open ranges of numbers, each leaf its own verdict: half the cost of a list."""
    if len(bounds) == 1:
        return bounds[0][1]
    middle = len(bounds) // 2
    left, right = _tree(bounds[:middle]), _tree(bounds[middle:])
    if len(left) <= 255:
        return [(_JGE, len(left), 0, bounds[middle][0]), *left, *right]
    return [(_JGE, 0, 1, bounds[middle][0]), (_JUMP, 0, 0, len(left)), *left, *right]
