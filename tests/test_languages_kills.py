"""Compilers and programs that somebody kills: ``infra``, never a verdict, and nothing that a program can earn."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lightning_dterm.sandbox import Job, Limits, Sandbox
from lightning_dterm.sandbox.languages import CompileCache, CompileLimits, Compilers, IOTest, ProgramJob, Programs
from lightning_dterm.sandbox.languages.gcc import CCompiler
from lightning_dterm.sandbox.languages.process import Command, Ended, explained
from lightning_dterm.types import CallTest
from tests.languages_common import descendants, needs, own_temporary_folder, process_name, work_files

__all__ = ["own_temporary_folder"]
pytestmark = pytest.mark.usefixtures("own_temporary_folder")
SUM = (IOTest("1 2", "3"),)


@contextlib.contextmanager
def killing(name: str, times: int = 1000) -> Iterator[list[int]]:
    """Kill descendants of this process that are called ``name``, at most so many of them; gives those it did kill."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and len(killed) < times:
            for pid in descendants():
                if pid not in killed and process_name(pid) == name and len(killed) < times:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
            time.sleep(0.004)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


SLOW_C = "int main(void) { volatile int a = 0;\n" + "a = a * 3 + a / 7 - (a << 2);\n" * 4_000 + "return 0; }\n"
SLOW_ASSEMBLY = '__asm__(".rept 2000000\\n nop\\n .endr");\nint main(void) { return 0; }\n'
SLOW = {
    "c": SLOW_C,
    "cpp": "template<int n> struct F { static constexpr long v = F<n - 1>::v + 1; };\n"
    "template<> struct F<0> { static constexpr long v = 1; };\n" + SLOW_C.replace("= 0;", "= F<800>::v;", 1),
    "java": "class A { int f(int a) {\n" + "a = a * 3 + a / 7 - (a << 2);\n" * 4_000 + "return a; } }\n",
    "javascript": "let a = 1;\n" + "a = a * 3 + a / 7 - (a << 2);\n" * 60_000,
    "csharp": "class A { int f(int a) {\n" + "a = a * 3 + a / 7 - (a << 2);\n" * 4_000 + "return a; } }\n",
}
# What to kill, and whether to build; each of these lives long enough to be seen.
VICTIMS = [
    ("c", "cc1", False),
    ("c", "sh", False),
    *(
        pytest.param(*one, marks=pytest.mark.slow)
        for one in (
            ("c", "gcc", False), ("c", "as", True), ("cpp", "cc1plus", False), ("java", "java", False),
            ("javascript", "node", False), ("csharp", "mono", False),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("language", "victim", "builds"), VICTIMS)
def test_a_compiler_killed_from_outside_is_no_verdict(language: str, victim: str, builds: bool) -> None:
    needs(language)
    cache = CompileCache()
    with Compilers(slots=1, cache=cache) as made:
        work: Callable[[str, str], object] = made.build if builds else made.check
        work(language, {"java": "class B { }"}.get(language, ""))  # what is vetted before is not what is tested
        source = SLOW_ASSEMBLY if builds else SLOW[language]
        with killing(victim) as killed:
            report = work(language, source)
        assert len(killed) >= 2, "tried again"
        assert getattr(report, "status", None) == "infra", report
        with killing(victim, times=1) as killed:
            report = work(language, source)
        assert len(killed) == 1
        assert getattr(report, "status", None) == "ok", "one kill costs nothing, and nothing of before was kept"
        assert not getattr(report, "cached", True)
    assert work_files() == []
    cache.close()


@pytest.mark.slow
def test_a_linker_killed_from_outside_is_no_verdict() -> None:
    needs("c")
    slow = '__asm__(".data\\n .fill 30000000, 1, 1\\n .text");'
    for backend in (CCompiler("gcc"), CCompiler("clang")):
        if backend.path is None:
            continue
        with Compilers(slots=1, backends=[backend], limits=CompileLimits(artifact_kb=1 << 18)) as made:
            assert made.check("c", "int x;") is not None
            with killing("ld"):
                report = made.build("c", f"{slow}\nint main(void) {{ return 0; }}")
        assert report is not None
        assert report.status == "infra", report


# A compiler's driver tells of killed parts in words, and these programs say the same words.
WORDS = "gcc: fatal error: Killed signal terminated program cc1\\ncompilation terminated.\\n"
FORGERS = [
    f'#error "{WORDS}"\n',
    f'#pragma message "\\n{WORDS}"\nint x = ;\n',
    '__asm__(".error \\"x\\\\ngcc: fatal error: Killed signal terminated program cc1\\"");\n'
    "int main(void) { return 0; }\n",
    'extern int a(void) __asm__("x\\ncollect2: fatal error: ld terminated with signal 9 [Killed]\\n");\n'
    "int main(void) { return a(); }\n",
    'extern int a(void) __asm__("x\\nclang: error: unable to execute command: Killed\\n");\n'
    "int main(void) { return a(); }\n",
    '__asm__(".print \\"gcc: fatal error: Killed signal terminated program cc1\\"");\nint main(void) { return f; }\n',
]


@pytest.mark.parametrize("family", ["gcc", pytest.param("clang", marks=pytest.mark.slow)])
def test_nobody_earns_infra_by_words(family: str) -> None:
    backend = CCompiler(family)
    if backend.path is None:
        pytest.skip(f"{family} is not installed")
    with Compilers(slots=1, backends=[backend]) as made:
        reports = made.build_many([("c", program) for program in FORGERS])
    assert [report and report.status for report in reports] == ["errors"] * len(FORGERS)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("#error CPU time limit exceeded", "errors"),
        ("#error File size limit exceeded", "errors"),
        ('__asm__(".fill 3000000, 1000");', "output"),  # the assembler is ended by its limit on files
        ("template<int n> struct F { static const long v = F<n - 1>::v + F<n - 2 + (n < 3)>::v; };", "ok"),
    ],
)
def test_a_compiler_at_its_own_limits_is_a_verdict(program: str, status: str) -> None:
    needs("cpp")
    with Compilers(slots=1, limits=CompileLimits(artifact_kb=4096, wall_s=300.0)) as made:
        report = made.build("cpp", program + "\nint main() { return 0; }\n")
    assert report is not None
    assert report.status == status, report


# --- programs ---------------------------------------------------------------------------------------------------------

SLEEPY = '#include <stdio.h>\n#include <unistd.h>\nint main(void) { usleep(700000); puts("3"); return 0; }\n'
CALLED = "#include <unistd.h>\nint f(int x) { usleep(700000); return x; }\n"


@pytest.mark.parametrize("namespaces", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_program_killed_from_outside_is_no_verdict(namespaces: bool) -> None:
    needs("c")
    with Compilers(slots=1, namespaces=namespaces) as made:
        runner = Programs(made, Limits(wall_s=300.0))
        for job in (
            ProgramJob("c", SLEEPY, SUM * 2), ProgramJob("c", CALLED, (CallTest((1,), 1), CallTest((2,), 2)), "f"),
        ):  # fmt: skip
            assert made.build(*runner._source(job)) is not None
            with killing("program"):
                result = runner.run(job)
            assert result is not None
            assert (result.status, [one.status for one in result.per_test]) == ("infra", ["infra"] * 2)
            with killing("program", times=1):
                result = runner.run(job)
            assert result is not None
            assert result.passed, result
    assert work_files() == []


def test_a_sandbox_of_compiled_programs_masks_what_was_killed() -> None:
    needs("c")
    with Sandbox(language="c", slots=1) as box:
        job = ProgramJob("c", SLEEPY, SUM)
        (result,) = box.run_many([job])
        assert result.passed
        with killing("program") as killed:
            (result,) = box.run_many([job])
        assert result.status == "infra"
        assert len(killed) >= 6, "each attempt of a sandbox is three of its launcher's"


LIMITED = Command("/x", ("x",), cpu_s=2.0, memory_mb=100)
KILLED = Ended(signal.SIGKILL, 0.1, 0.2, 10 << 20, (), "", b"", b"", ())


@pytest.mark.parametrize(
    ("changed", "flags"),
    [
        ({}, ("outside",)),
        ({"flags": ("wall",)}, ("wall",)),
        ({"cpu_s": 2.0}, ("cpu",)),
        ({"peak_rss": 74 << 20}, ("outside",)),
        ({"peak_rss": 75 << 20}, ("memory",)),  # it brought the machine's out-of-memory killer on itself
        ({"wait_status": signal.SIGSEGV}, ()),
        ({"wait_status": 137 << 8}, ()),  # an exit code is the program's own
        ({"wait_status": 0}, ()),
    ],
)
def test_what_explains_a_kill(changed: dict[str, object], flags: tuple[str, ...]) -> None:
    fields = {name: getattr(KILLED, name) for name in KILLED.__slots__}
    assert explained(Ended(**{**fields, **changed}), LIMITED).flags == flags  # type: ignore[arg-type]


def test_without_the_filter_a_program_may_have_killed_itself() -> None:
    needs("c")
    with Compilers(slots=1, allow_missing=["seccomp"]) as made:
        runner = Programs(made, Limits(wall_s=300.0))
        assert made.build("c", SLEEPY) is not None
        slot = made._idle.get()
        slot.launcher.start()
        slot.launcher.granted -= {"seccomp"}  # as on a kernel without it
        made._idle.put(slot)
        with killing("program"):
            result = runner.run(ProgramJob("c", SLEEPY, SUM))
    assert result is not None
    assert (result.status, result.level) == ("killed", "process")


# --- SIGKILLs that a program would have sent to itself ----------------------------------------------------------------

# The kernel counts by its tick who used the processor: to work only while it ticks is to seem busy all the time.
TICKS = r"""
#include <signal.h>
#include <stdio.h>
#include <time.h>
static long long now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(void) {
  signal(SIGXCPU, SIG_IGN);
  struct timespec r;
  clock_getres(CLOCK_MONOTONIC_COARSE, &r);
  long long period = r.tv_nsec, busy = period / 4, first = now(CLOCK_MONOTONIC_COARSE);
  while (now(CLOCK_MONOTONIC_COARSE) == first) ;
  for (long long tick = now(CLOCK_MONOTONIC);;) {
    tick += period;
    while (tick < now(CLOCK_MONOTONIC)) tick += period;
    struct timespec t = {(tick - busy / 2) / 1000000000LL, (tick - busy / 2) % 1000000000LL};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
    while (now(CLOCK_MONOTONIC) < tick + busy / 2) ;
  }
}
"""
PYTHON_TICKS = """
import signal, time
def f(x):
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    now = time.monotonic
    coarse = lambda: time.clock_gettime(6)
    period = time.clock_getres(6)
    first = coarse()
    while coarse() == first: pass
    tick = now()
    while True:
        tick += period
        while tick < now(): tick += period
        time.sleep(max(0.0, tick - period / 6 - now()))
        while now() < tick + period / 8: pass
"""


def test_the_kernel_kills_nobody_for_its_seconds() -> None:
    needs("c")
    mine = resource.getrlimit(resource.RLIMIT_CPU)[1]
    program = (
        "#include <stdio.h>\n#include <sys/resource.h>\nint main(void) { struct rlimit r; getrlimit(RLIMIT_CPU, &r);"
        ' printf("%lld %lld", (long long)r.rlim_cur, (long long)r.rlim_max); return 0; }'
    )
    with Compilers(slots=1) as made:
        result = Programs(made, Limits(cpu_s=1.5)).run(ProgramJob("c", program, (IOTest("", f"2 {mine}"),)))
    assert result is not None
    assert result.passed
    python = "import resource\ndef f(x): return list(resource.getrlimit(resource.RLIMIT_CPU))\n"
    with Sandbox(slots=1, limits=Limits(cpu_s=1.5)) as box:
        assert box.run(python, "f", [CallTest((1,), [2, mine])]).passed


@pytest.mark.slow
def test_seeming_busy_is_no_way_to_be_killed() -> None:
    """On an idle machine, where such a program meets nearly every tick."""
    needs("c")
    limits = Limits(cpu_s=1.0, wall_s=4.5)
    with Compilers(slots=1) as made:
        result = Programs(made, limits).run(ProgramJob("c", TICKS, SUM))
    assert result is not None
    assert (result.status, result.attempts) == ("timeout", 1), result
    with Sandbox(slots=1, limits=limits) as box:
        found = box.run_many([Job(PYTHON_TICKS, "f", (CallTest((1,), 1),))])
    assert [(one.status, one.attempts) for one in found] == [("timeout", 1)]


ATTEMPTS = [  # refused, or harmless: the program goes on
    "raise(SIGKILL); kill(getpid(), 9); syscall(SYS_tgkill, getpid(), getpid(), 9);",
    "siginfo_t i = {0}; syscall(SYS_tkill, getpid(), 9); syscall(SYS_rt_sigqueueinfo, getpid(), 9, &i); "
    "syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), 9, &i);",
    "syscall(SYS_pidfd_send_signal, syscall(SYS_pidfd_open, getpid(), 0), 9, 0, 0);",
    "prctl(PR_SET_PDEATHSIG, 9); prctl(PR_SET_SECCOMP, 1);",
    "struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 9}; timer_t t = 0; struct itimerspec s = "
    "{{0, 1}, {0, 1}}; syscall(SYS_timer_create, 0, &e, &t); syscall(SYS_timer_settime, t, 0, &s, 0); usleep(20000);",
    "struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 9}; syscall(SYS_mq_notify, "
    'syscall(SYS_mq_open, "q", O_CREAT | O_RDWR, 0600, 0), &e);',
    "int p[2], on = 1, me = getpid(); if (pipe(p)) return 1; fcntl(p[0], F_SETOWN, me); fcntl(p[0], F_SETSIG, 9); "
    "fcntl(p[0], F_SETFL, O_ASYNC); fcntl(p[0], F_NOTIFY, 1); fcntl(p[0], F_SETLEASE, 1); ioctl(p[0], FIOASYNC, &on); "
    "ioctl(p[0], 0x8901, &me); if (write(p[1], p, 1) < 0) return 1;",
    "struct rlimit r = {0, 0}; setrlimit(RLIMIT_CPU, &r); prlimit(0, RLIMIT_CPU, &r, 0); prlimit(0, RLIMIT_RTTIME, "
    "&r, 0); usleep(20000);",
    "struct itimerval v = {{0, 1000}, {0, 1000}}; signal(SIGALRM, SIG_IGN); setitimer(ITIMER_REAL, &v, 0); "
    "usleep(20000);",
    "struct sock_filter f = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS); struct sock_fprog p = {1, &f}; "
    "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); prctl(PR_SET_SECCOMP, 2, &p); syscall(SYS_seccomp, 1, 0, &p);",
    "for (;;) { char *p = mmap(0, 1 << 20, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0); if (p == MAP_FAILED) break; "
    "memset(p, 1, 1 << 20); }",
]
ENDINGS = [
    ("_exit(137);", "passed"),  # what a shell would say of a killed command
    ("signal(SIGALRM, SIG_DFL); alarm(1); for (;;) pause();", "killed"),
    ('__asm__ volatile("int $0x80" : : "a"(20));' if os.uname().machine == "x86_64" else "abort();", "killed"),
    ("struct rlimit r = {4096, 4096}; prlimit(0, RLIMIT_STACK, &r, 0); volatile char a[1 << 20]; a[0] = 1; main();",
     "killed"),
]  # fmt: skip
INCLUDES = "".join(
    f"#include <{name}.h>\n"
    for name in (
        "asm/ioctls", "fcntl", "linux/filter", "linux/seccomp", "mqueue", "signal", "stdio", "stdlib", "string",
        "sys/ioctl", "sys/mman", "sys/prctl", "sys/resource", "sys/syscall", "sys/time", "time", "unistd",
    )
)  # fmt: skip


@pytest.mark.parametrize("namespaces", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_program_has_itself_killed(namespaces: bool) -> None:
    needs("c")
    head = f"#define _GNU_SOURCE\n{INCLUDES}"
    told = "".join(f'fprintf(stderr, "{number}\\n"); {{ {body} }}\n' for number, body in enumerate(ATTEMPTS))
    endings = [(told, "passed"), *ENDINGS]
    jobs = [
        ProgramJob("c", f'{head}int main(void) {{ puts("3"); fflush(stdout); {body} return 0; }}', SUM)
        for body, _ in endings
    ]
    with Compilers(slots=1, namespaces=namespaces) as made:
        results = Programs(made, Limits(wall_s=300.0, memory_mb=128)).run_many(jobs)
    assert [one and one.status for one in results] == [status for _, status in endings], results[0]


def test_an_executable_that_does_not_fit_is_at_fault() -> None:
    """The kernel gives up such a program in the middle of its start."""
    needs("c")
    program = "static char a[1L << 40];\nint main(void) { return a[1]; }\n"
    with Compilers(slots=1, backends=[_Large()]) as made:
        result = Programs(made).run(ProgramJob("c", program, SUM))
    assert result is not None
    assert result.status == "killed", result


class _Large(CCompiler):
    def __init__(self) -> None:
        super().__init__("gcc")
        self.optimize = "-mcmodel=large"
