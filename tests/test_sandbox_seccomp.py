"""The seccomp filter, decided by a small interpreter of classic BPF instead of the kernel."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_dterm.sandbox.seccomp import (
    EXEC_FD,
    PROGRAM_CALLS,
    PYTHON_CALLS,
    TOOLS_CALLS,
    build_filter,
    only_if,
    pid_slots,
    program_checks,
    tools_checks,
)
from lightning_dterm.sandbox.syscalls import AUDIT_ARCH, NUMBERS

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
PID = 4242
MACHINES = sorted(NUMBERS)
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def simulate(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would return for one system call."""
    data = {0: number, 4: arch}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        data[16 + 8 * index], data[20 + 8 * index] = value & 0xFFFFFFFF, value >> 32
    at = accumulator = steps = 0
    while True:
        operation, yes, no, value = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        steps += 1
        if operation == 0x20:
            accumulator = data[value]
        elif operation == 0x06:
            assert steps < 60, "a tree is shallow"
            return int(value)
        elif operation == 0x05:
            at += value
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += yes if taken else no


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def decide(machine: str, name: str, *arguments: int) -> int:
    return simulate(build_filter(machine, own_pid=PID), AUDIT_ARCH[machine], NUMBERS[machine][name], *arguments)


def test_every_number_is_decided_by_the_list(machine: str) -> None:
    code, checked = build_filter(machine, own_pid=PID), {"clone", "clone3", "kill", "tgkill", "prlimit64", "setrlimit"}
    checked |= {"fcntl", "ioctl", "prctl", "open", "openat"}
    for name, number in NUMBERS[machine].items():
        if name not in checked:
            wanted = ALLOW if name in PYTHON_CALLS else EPERM
            assert simulate(code, AUDIT_ARCH[machine], number) == wanted, name


@pytest.mark.parametrize(
    "name",
    [
        "socket",
        "socketpair",
        "connect",
        "bind",
        "sendmsg",
        "recvmsg",
        "execve",
        "execveat",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "io_uring_setup",
        "io_uring_enter",
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "unshare",
        "setns",
        "pidfd_open",
        "pidfd_send_signal",
        "pidfd_getfd",
        "bpf",
        "keyctl",
        "perf_event_open",
        "userfaultfd",
        "memfd_create",
        "memfd_secret",
        "init_module",
        "kexec_load",
        "open_by_handle_at",
        "rt_sigqueueinfo",
        "tkill",
        "rt_tgsigqueueinfo",
        "sched_setaffinity",
        "sched_setscheduler",
        "setpriority",
        "shmget",
        "msgget",
        "semget",
        "mq_open",
        "setuid",
        "setgid",
        "capset",
        "personality",
        "setsid",
        "setpgid",
        "mknodat",
        "inotify_init1",
        "signalfd4",
        "timer_create",
        "landlock_create_ruleset",
        "seccomp",
        "acct",
        "add_key",
        "fchmod",
        "fchmodat",
        "utimensat",
        "fchown",
        "setxattr",
    ],
)
def test_what_no_program_may_do(machine: str, name: str) -> None:
    assert decide(machine, name) == EPERM


def test_arguments_are_checked(machine: str) -> None:
    thread = 0x3D0F00
    assert decide(machine, "clone", thread) == ALLOW
    assert decide(machine, "clone", 17) == EPERM  # fork
    assert decide(machine, "clone", thread | 0x10000000) == EPERM  # with a user namespace
    assert decide(machine, "clone", 0x4111) == EPERM  # vfork
    assert decide(machine, "clone3") == ENOSYS
    assert decide(machine, "kill", PID, 15) == ALLOW
    for pid in (PID + 1, 0, 1, 0xFFFFFFFF):
        assert decide(machine, "kill", pid, 15) == EPERM
    assert decide(machine, "kill", PID, 9) == EPERM  # then SIGKILL always comes from outside
    assert decide(machine, "kill", PID, 19) == EPERM
    assert decide(machine, "tgkill", PID, 77, 6) == ALLOW
    assert decide(machine, "tgkill", PID, 77, 9) == EPERM
    assert decide(machine, "tgkill", 1, 77, 6) == EPERM
    assert decide(machine, "prlimit64", 0, 7, 0, 0xDEADBEEF) == ALLOW
    assert decide(machine, "prlimit64", 1, 7, 0, 0xDEADBEEF) == EPERM
    assert decide(machine, "prlimit64", 0, 7, 0xDEADBEEF) == EPERM
    assert decide(machine, "prlimit64", 0, 7, 1 << 32) == EPERM  # a pointer whose low half is zero
    assert decide(machine, "prlimit64", 0, 3, 0xDEADBEEF) == ALLOW  # the stack's
    assert decide(machine, "setrlimit", 0) == EPERM
    for command, wanted in (
        (1, ALLOW),
        (1030, ALLOW),
        (8, EPERM),
        (10, EPERM),
        (15, EPERM),
        (1024, EPERM),
        (1033, EPERM),
    ):
        assert decide(machine, "fcntl", 0, command) == wanted, command
    for command, wanted in ((0x5401, ALLOW), (0x541B, ALLOW), (0x5412, EPERM), (0x8901, EPERM), (0x5452, EPERM)):
        assert decide(machine, "ioctl", 0, command) == wanted, command
    assert decide(machine, "prctl", 15) == ALLOW
    for flags, wanted in ((0, ALLOW), (0o1000, EPERM), (0o1001, ALLOW), (0o1102, ALLOW), (0o2001000, EPERM)):
        assert decide(machine, "openat", 0xFFFFFF9C, 0xDEADBEEF, flags) == wanted, oct(flags)
    assert decide(machine, "prctl", 4) == EPERM


def test_foreign_architectures_and_numbers(machine: str) -> None:
    code = build_filter(machine, own_pid=PID)
    for arch in (0x40000003, 0x40000028, *({*AUDIT_ARCH.values()} - {AUDIT_ARCH[machine]})):
        assert simulate(code, arch, 1) == KILL
    arch = AUDIT_ARCH[machine]
    assert simulate(code, arch, 0x40000001) == EPERM  # x32
    assert simulate(code, arch, 0x40000000 | 59) == EPERM
    assert simulate(code, arch, 9999) == ENOSYS
    assert simulate(code, arch, 0xFFFFFFFF) == EPERM


@given(st.integers(0, 2**32 - 1))
def test_no_number_runs_off_the_end(number: int) -> None:
    for machine in MACHINES:
        assert simulate(build_filter(machine, own_pid=PID), AUDIT_ARCH[machine], number) in (ALLOW, EPERM, ENOSYS)


THREAD = 0x3D0F00
VERDICTS = [  # call, arguments, as a program, as a compiler driver
    ("read", (), ALLOW, ALLOW), ("fork", (), EPERM, ALLOW), ("vfork", (), EPERM, ALLOW), ("execve", (), EPERM, ALLOW),
    ("wait4", (), EPERM, ALLOW), ("chmod", (), EPERM, ALLOW), ("fchmodat", (), EPERM, ALLOW),
    ("utimensat", (), EPERM, ALLOW), ("truncate", (), EPERM, ALLOW), ("symlinkat", (), EPERM, EPERM),
    ("setrlimit", (3,), EPERM, EPERM), ("socket", (), EPERM, EPERM), ("ptrace", (), EPERM, EPERM),
    ("memfd_create", (), EPERM, EPERM), ("signalfd4", (), EPERM, EPERM), ("capget", (), EPERM, EPERM),
    ("kill", (PID, 15), ALLOW, EPERM), ("kill", (PID, 9), EPERM, EPERM), ("kill", (PID + 1, 15), EPERM, EPERM),
    ("kill", (0, 15), EPERM, EPERM), ("kill", (2**32 - 1, 15), EPERM, EPERM),
    ("tgkill", (PID, 80, 6), ALLOW, ALLOW), ("tgkill", (1, 1, 6), EPERM, ALLOW), ("tgkill", (1, 1, 9), EPERM, EPERM),
    ("clone", (THREAD,), ALLOW, ALLOW), ("clone", (17,), EPERM, ALLOW), ("clone", (0x4111,), EPERM, ALLOW),
    ("clone", (1 << 28 | 17,), EPERM, EPERM), ("clone", (THREAD | 1 << 30,), EPERM, EPERM),
    ("clone", (0x80 | 17,), EPERM, EPERM), ("clone3", (), ENOSYS, ENOSYS),
    ("execveat", (EXEC_FD, 0, 0, 0, 0x1000), ALLOW, ALLOW), ("execveat", (EXEC_FD, 0, 0, 0, 0), EPERM, EPERM),
    ("execveat", (3, 0, 0, 0, 0x1000), EPERM, EPERM), ("prlimit64", (0, 7, 0, 1), ALLOW, ALLOW),
    ("prlimit64", (0, 7, 1 << 32, 1), EPERM, EPERM), ("prlimit64", (1, 7, 0, 1), EPERM, EPERM),
    ("fcntl", (0, 2), ALLOW, ALLOW), ("fcntl", (0, 8), EPERM, EPERM), ("fcntl", (0, 10), EPERM, EPERM),
    ("fcntl", (0, 1024), EPERM, EPERM), ("ioctl", (0, 0x5401), ALLOW, ALLOW), ("ioctl", (0, 0x5412), EPERM, EPERM),
    ("prctl", (15,), ALLOW, ALLOW), ("prctl", (23,), ALLOW, ALLOW), ("prctl", (22,), EPERM, EPERM),
    ("prctl", (4,), EPERM, EPERM), ("prctl", (1,), EPERM, EPERM),
    ("timer_create", (), EPERM, EPERM), ("timer_settime", (), EPERM, EPERM), ("timerfd_create", (), ALLOW, ALLOW),
    ("socketpair", (1, 1, 0), ALLOW, ALLOW), ("socketpair", (2, 1, 0), EPERM, EPERM),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "program", "tools"), VERDICTS)
def test_the_exec_profiles(machine: str, name: str, arguments: tuple[int, ...], program: int, tools: int) -> None:
    if name not in NUMBERS[machine]:
        assert name in ("fork", "vfork", "chmod"), "old calls that this machine never had"
        return
    filters = (
        (build_filter(machine, PROGRAM_CALLS, PID, program_checks()), program),
        (build_filter(machine, TOOLS_CALLS, PID, tools_checks()), tools),
    )
    for code, verdict in filters:
        assert len(code) // 8 <= 4096
        assert simulate(code, AUDIT_ARCH[machine], NUMBERS[machine][name], *arguments) == verdict


def test_no_exec_profile_allows_what_it_does_not_list(machine: str) -> None:
    for calls, checks in ((PROGRAM_CALLS, program_checks()), (TOOLS_CALLS, tools_checks())):
        code = build_filter(machine, calls, PID, checks)
        listed = {NUMBERS[machine][name] for name in calls if name in NUMBERS[machine]}
        for number in (*range(1100), 0x40000000, 0x40000001, 0xFFFFFFFF):
            if number not in listed:
                assert simulate(code, AUDIT_ARCH[machine], number) in (EPERM, ENOSYS), number
        assert simulate(code, 0x40000003, 0) == KILL


def test_every_name_on_a_list_is_a_call_of_some_machine_and_the_lists_grow_in_order(machine: str) -> None:
    assert PROGRAM_CALLS < TOOLS_CALLS
    every = {name for table in NUMBERS.values() for name in table}
    assert every >= PYTHON_CALLS | TOOLS_CALLS
    # What a machine lacks are calls that it has under a newer name: aarch64 never had the old ones.
    missing = (PYTHON_CALLS | TOOLS_CALLS) - NUMBERS[machine].keys()
    newer = {name: (f"{name}at", f"{name}2", f"{name}1", f"p{name}", f"new{name}at", f"{name}64") for name in missing}
    renamed = {"open": "openat", "stat": "newfstatat", "lstat": "newfstatat", "poll": "ppoll", "select": "pselect6",
               "pipe": "pipe2", "dup2": "dup3", "pause": "ppoll", "alarm": "setitimer", "getpgrp": "getpgid",
               "fork": "clone", "vfork": "clone", "creat": "openat", "rename": "renameat2", "rmdir": "unlinkat",
               "time": "gettimeofday", "epoll_create": "epoll_create1", "epoll_wait": "epoll_pwait",
               "eventfd": "eventfd2", "access": "faccessat", "chmod": "fchmodat", "getdents": "getdents64"}  # fmt: skip
    for name in missing:
        others = {renamed.get(name, ""), *newer[name]}
        assert others & NUMBERS[machine].keys() or name == "arch_prctl", name  # arch_prctl: x86 only


def test_lists_and_checks_of_ones_own() -> None:
    code = build_filter("x86_64", ["read", "socket"], checks={"socket": only_if(0, (1, 2))})
    arch, numbers = AUDIT_ARCH["x86_64"], NUMBERS["x86_64"]
    assert simulate(code, arch, numbers["read"]) == ALLOW
    assert simulate(code, arch, numbers["write"]) == EPERM
    assert [simulate(code, arch, numbers["socket"], family) for family in (1, 2, 16)] == [ALLOW, ALLOW, EPERM]
    assert pid_slots(code) == []
    assert len(pid_slots(build_filter("aarch64"))) == 2
    with pytest.raises(ValueError, match="no_such_call"):
        build_filter("x86_64", ["no_such_call"])
    with pytest.raises(KeyError):
        build_filter("riscv64")


def test_numbers_are_the_kernels(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    found["newfstatat"] = found.get("newfstatat") or found["fstatat"]
    for name, number in NUMBERS[machine].items():
        if name in found:
            assert int(found[name]) == number, name
    assert sum(name in found for name in NUMBERS[machine]) > 250
