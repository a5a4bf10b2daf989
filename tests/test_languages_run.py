"""Programs that are compiled and run: tests on text and by calls, limits, hostile programs, and what must not leak."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_dterm.sandbox.languages import CompileLimits, Compilers, IOTest, ProgramJob, Programs
from lightning_dterm.sandbox.languages.drivers import program_with_driver
from lightning_dterm.sandbox.result import Limits, Result
from lightning_dterm.types import CallTest
from tests.languages_common import children, descriptors, folders, needs, own_temporary_folder, work_files

__all__ = ["own_temporary_folder"]
SUM = (IOTest("1 2\n", "3"), IOTest("40 2\n", "42\n", visible=False))


@pytest.fixture(scope="module")
def compilers(own_temporary_folder: None) -> Iterator[Compilers]:
    fds = descriptors()
    with Compilers(slots=1, limits=CompileLimits(wall_s=900.0)) as found:
        yield found
    assert children() == []
    assert folders() == set()
    assert descriptors() <= fds


@pytest.fixture(scope="module")
def programs(compilers: Compilers) -> Programs:
    return Programs(compilers, Limits(cpu_s=2.0, wall_s=300.0))


def judge(programs: Programs, language: str, program: str, tests: Any, entry: str | None = None, **how: Any) -> Result:
    needs(language)
    result = programs.run(ProgramJob(language, program, tuple(tests), entry, **how))
    assert result is not None
    assert result.status != "infra", result
    assert work_files() == []
    return result


def statuses(result: Result) -> list[str]:
    return [outcome.status for outcome in result.per_test]


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("c", '#include <stdio.h>\nint main() { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); return 7; }'),
        ("cpp", "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"),
        ("java", "import java.util.*; public class Foo { public static void main(String[] x) { "
                 "Scanner s = new Scanner(System.in); int a = s.nextInt(), b = s.nextInt(); "
                 "System.out.println(a + b); } }"),
        ("javascript", "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\n"
                       "console.log(a + b);"),
    ],
)  # fmt: skip
def test_programs_on_text(programs: Programs, language: str, program: str) -> None:
    result = judge(programs, language, program, SUM)
    assert (result.status, statuses(result)) == ("passed", ["passed", "passed"]), result
    assert result.share_passed(visible=False) == 1.0
    assert result.cpu_s > 0
    assert result.peak_rss > 0
    assert result.level in ("kernel", "namespaces")
    assert result.attempts == 2
    wrong = judge(programs, language, program.replace("a + b", "a * b + 1"), SUM)
    assert statuses(wrong) == ["passed", "failed"]
    assert wrong.status == "failed"


def test_a_program_that_does_not_compile_says_where(programs: Programs) -> None:
    result = judge(programs, "c", "int main(void) {\n  return x;\n}\n", SUM)
    assert (result.status, statuses(result)) == ("error", ["error", "error"])
    assert result.compile_error is not None
    assert (result.compile_error.line, result.compile_error.column) == (2, 10)


def test_exit_codes_count_where_they_mean_something(programs: Programs) -> None:
    result = judge(programs, "cpp", '#include <cstdio>\nint main() { puts("3"); return 4; }', SUM[:1])
    assert result.status == "error"
    result = judge(programs, "javascript", "console.log(3); throw new Error('late');", SUM[:1])
    assert result.status == "error"
    assert "late" in (result.exception or "")


CALLS: list[tuple[str, str, list[CallTest], list[str]]] = [
    ("javascript", "function f(a, b) { return a.concat([b]); }",
     [CallTest(([1, 2], 3.5), [1, 2, 3.5]), CallTest((["é😀"], {"a": {1}}), ["é😀", {"a": {1}}]),
      CallTest(([], 1), [2])],
     ["passed", "passed", "failed"]),
    ("javascript", "export const f = x => { if (x === 2) throw new Error('no'); return new Map([[x, NaN]]); };",
     [CallTest((1,), {1: math.nan}), CallTest((2,), 1), CallTest((3,), {3: math.nan})], ["passed", "error", "passed"]),
    ("java", "import java.util.*; class Solution { public List<Integer> f(int[] a, List<String> s, double d, char c, "
             "long l) { List<Integer> o = new ArrayList<>(); for (int x : a) o.add(x); "
             "o.add(s.size()); o.add((int) d); "
             "o.add((int) c); o.add((int) (l % 10)); return o; } }",
     [CallTest(([1, 2], ["a"], 2.5, "a", 10**17 + 3), [1, 2, 1, 2, 97, 3])], ["passed"]),
    ("java", 'static Map<String, Integer> f(Map<String, List<Integer>> m, boolean b) { if (b) throw new '
             'RuntimeException("bad"); Map<String, Integer> o = new HashMap<>(); m.forEach((k, v) -> o.put(k + "é", '
             'v.size())); return o; }',
     [CallTest(({"a": [1, 2]}, False), {"aé": 2}), CallTest(({}, True), {}), CallTest(({}, False), {})],
     ["passed", "error", "passed"]),
    ("cpp", "#include <bits/stdc++.h>\nusing namespace std;\nmap<string, vector<double>> f(vector<vector<int>> &v, "
            "const string &s, double d, long long n, pair<int, string> p) { map<string, vector<double>> m; "
            "for (auto &x : "
            'v) for (int y : x) m[s + p.second].push_back(y * d); m["n"] = {double(n)}; return m; }\n'
            "int main() { return 1; }",
     [CallTest(([[1, 2], [3]], 'é"', 0.5, 10**15, (1, "z")), {'é"z': [0.5, 1.0, 1.5], "n": [1e15]})], ["passed"]),
    ("cpp", "int f(int x) { if (x == 1) __builtin_trap(); if (x == 2) throw 5; return x * x; }",
     [CallTest((i,), i * i) for i in range(5)], ["passed", "killed", "error", "passed", "passed"]),
    ("cpp", "#include <set>\n#include <string>\nbool f(std::set<int> s, char c) { return s.count(c); }",
     [CallTest(({97}, "a"), True), CallTest(({97}, "b"), True)], ["passed", "failed"]),
    ("c", "int f(int *a, int n) { int s = 0; for (int i = 0; i < n; i++) s += a[i]; return s; }",
     [CallTest(([1, 2, 3], 3), 6), CallTest(([1], 1), 2), CallTest(([], 0), 0)], ["passed", "failed", "passed"]),
    ("c", "#include <ctype.h>\nconst char *f(char *s, double d, _Bool b) { static char o[99]; char *p = o; while (*s) "
          "*p++ = toupper(*s++); *p = 0; return b ? o : 0; }",
     [CallTest(('a"?é\n', 1.5, True), 'A"?é\n'), CallTest(("a", 1.5, False), None)], ["passed", "passed"]),
]  # fmt: skip


@pytest.mark.parametrize(("language", "program", "tests", "expected"), CALLS, ids=range(len(CALLS)))
def test_functions_by_calls(
    programs: Programs, language: str, program: str, tests: list[CallTest], expected: list[str]
) -> None:
    result = judge(programs, language, program, tests, "f")
    assert statuses(result) == expected, result


def test_a_hang_ends_only_its_own_test(compilers: Compilers) -> None:
    quick = Programs(compilers, Limits(cpu_s=0.5, wall_s=300.0, restarts=0))
    code = "int f(int x) { if (x == 1) for (;;); return x; }"
    result = judge(quick, "c", code, [CallTest((i,), i) for i in range(3)], "f")
    assert statuses(result) == ["passed", "timeout", "timeout"]
    patient = Programs(compilers, Limits(cpu_s=0.5, wall_s=300.0, restarts=1))
    result = judge(patient, "c", code, [CallTest((i,), i) for i in range(3)], "f")
    assert statuses(result) == ["passed", "timeout", "passed"]


def test_a_sleeper_is_stopped_by_the_wall_clock(compilers: Compilers) -> None:
    program = "#include <unistd.h>\nint main(void) { sleep(1000); return 0; }"
    result = judge(Programs(compilers, Limits(wall_s=0.5)), "c", program, SUM[:1])
    assert result.status == "timeout"
    assert result.cpu_s < 0.5


# --- hostile programs -----------------------------------------------------------------------------------------------

HEAD = """#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static int bad(long r) {
  return r < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS || errno == ENOENT || errno == EROFS);
}
"""
# Each expression must be true: the attack is refused.
REFUSED = {
    "sockets": "bad(socket(AF_INET, SOCK_STREAM, 0)) && bad(socket(AF_UNIX, SOCK_DGRAM, 0)) && "
               "bad(socket(AF_NETLINK, SOCK_RAW, 0))",
    "processes": "bad(fork()) && bad(vfork()) && bad(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))",
    "programs": 'bad(execl("/bin/true", "true", NULL)) && bad(syscall(SYS_execveat, 3, "", NULL, NULL, 0x1000)) && '
                'bad(syscall(SYS_execveat, AT_FDCWD, "program", NULL, NULL, 0))',
    "its own exec slot": 'dup2(open("program", O_RDONLY), 900) < 0 && fcntl(0, F_DUPFD, 900) < 0 && '
                         "syscall(SYS_execveat, 900, \"\", NULL, NULL, 0x1000) < 0",
    "files": 'bad(open("/etc/passwd", O_RDONLY)) && bad(open("/root", O_RDONLY)) && '
             'bad(open("/proc/1/cmdline", O_RDONLY)) && bad(open("/proc/self/environ", O_RDONLY)) && '
             'bad(open("/tmp", O_RDONLY | O_DIRECTORY)) && '
             'bad(open("..", O_RDONLY | O_DIRECTORY))',
    "writing": 'bad(open("x", O_WRONLY | O_CREAT, 0600)) && open("program", O_WRONLY) < 0 && '
               'bad(unlink("program")) && '
               'bad(mkdir("d", 0700)) && bad(symlink("/etc/passwd", "l")) && bad(rename("program", "p")) && '
               'bad(open("/tmp/lightning-dterm-x", O_WRONLY | O_CREAT, 0600)) && bad(open("/dev/shm/x", O_RDWR | '
               "O_CREAT, 0600)) && bad(syscall(SYS_memfd_create, \"m\", 0))",
    # /bin/true has this mode already: no harm where the fence should leak
    "modes and times": 'bad(chmod("/bin/true", 0755)) && bad(chmod("program", 0755)) && '
                       'bad(fchmodat(AT_FDCWD, "program", 0755, 0)) && bad(utimensat(AT_FDCWD, "program", 0, 0)) && '
                       'bad(truncate("program", 0))',
    "tracing": "bad(ptrace(PTRACE_TRACEME, 0, 0, 0)) && bad(ptrace(PTRACE_ATTACH, getppid(), 0, 0)) && "
               "bad(syscall(SYS_process_vm_readv, getppid(), 0, 0, 0, 0, 0))",
    "signals": "bad(kill(getppid(), SIGKILL)) && bad(kill(-1, SIGKILL)) && bad(kill(0, SIGKILL)) && "
               "bad(syscall(SYS_tkill, 1, SIGKILL)) && bad(syscall(SYS_tgkill, 1, 1, SIGKILL)) && "
               "bad(syscall(SYS_pidfd_open, 1, 0)) && bad(syscall(SYS_rt_sigqueueinfo, 1, 9, 0))",
    "signals by descriptors": "bad(fcntl(0, F_SETOWN, 1)) && bad(fcntl(0, F_SETSIG, 9)) && "
                              "bad(fcntl(0, F_SETOWN_EX, 0))",
    "limits": "({ struct rlimit r = {1000, 1000}; bad(setrlimit(RLIMIT_NOFILE, &r)) && "
              "bad(prlimit(1, RLIMIT_CPU, &r, 0)) && bad(prlimit(0, RLIMIT_CPU, &r, 0)); })",
    "namespaces": "bad(unshare(CLONE_NEWUSER)) && bad(unshare(CLONE_NEWNS)) && bad(setns(0, 0)) && "
                  "bad(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)) && bad(syscall(SYS_clone3, 0, 0))",
    "mounts": 'bad(mount("none", "/", "tmpfs", 0, "")) && bad(umount2("/", 2)) && bad(chroot(".")) && '
              'bad(syscall(SYS_pivot_root, ".", ".")) && bad(syscall(SYS_open_tree, -100, ".", 1))',
    "kernel doors": "bad(syscall(SYS_io_uring_setup, 8, 0)) && bad(syscall(SYS_bpf, 0, 0, 0)) && "
                    "bad(syscall(SYS_userfaultfd, 0)) && bad(syscall(SYS_perf_event_open, 0, 0, -1, -1, 0)) && "
                    "bad(syscall(SYS_keyctl, 0, 0)) && bad(syscall(SYS_add_key, 0, 0, 0, 0, 0)) && "
                    "bad(syscall(SYS_kexec_load, 0, 0, 0, 0)) && bad(syscall(SYS_init_module, 0, 0, 0))",
    "privileges": "bad(setuid(1)) && bad(setgid(1)) && bad(prctl(PR_SET_SECCOMP, 0)) && "
                  "bad(prctl(PR_SET_PDEATHSIG, 0)) && bad(prctl(PR_SET_DUMPABLE, 1)) && bad(syscall(SYS_capset, 0, 0))",
    "shared memory": "bad(syscall(SYS_shmget, 1, 4096, 01600)) && bad(syscall(SYS_semget, 1, 1, 01600)) && "
                     "bad(syscall(SYS_msgget, 1, 01600)) && bad(syscall(SYS_mq_open, \"/q\", O_CREAT, 0600, 0))",
    "scheduling": "bad(setpriority(PRIO_PROCESS, 0, -5)) && bad(nice(-5)) && "
                  "bad(syscall(SYS_sched_setaffinity, 0, 0, 0)) && bad(setsid()) && bad(setpgid(0, 0))",
    "terminals": "bad(syscall(SYS_ioctl, 0, 0x5412, \"x\"))",
}  # fmt: skip


def test_what_a_program_is_refused(programs: Programs) -> None:
    needs("c")
    lines = "".join(f'  puts(({expression}) ? "refused" : "OPEN: {name}");\n' for name, expression in REFUSED.items())
    program = HEAD + "int main(void) {\n  signal(SIGSYS, SIG_IGN);\n" + lines + "  return 0;\n}\n"
    result = judge(programs, "c", program, [IOTest("", "refused\n" * len(REFUSED))])
    if result.status != "passed":
        report = programs.compilers.build("c", program)
        assert report is not None
        assert report.artifact is not None, report.errors
        ended, _ = programs.compilers.run(programs.compilers.backends["c"].command(report.artifact, b"", Limits()))
        pytest.fail(f"{ended.stdout.decode()} {ended.stderr.decode()}")


ENDINGS = [
    ("while (1) puts(\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\");", "output"),
    ("while (1) fputs(\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", stderr);", "output"),
    ("for (;;);", "timeout"),
    ("signal(SIGXCPU, SIG_IGN); for (;;);", "timeout"),
    ("abort();", "killed"),
    ("raise(SIGKILL);", "failed"),  # refused: a SIGKILL always comes from outside
    ("*(volatile int *)0 = 1;", "killed"),
    ("volatile char a[1 << 20]; int f(void); a[0] = 1; main();", "killed"),
    ("char *p; while ((p = malloc(1 << 20))) memset(p, 1, 1 << 20); puts(\"3\");", "passed"),
    ("puts(\"3\"); fflush(stdout); close(1); close(2); close(0);", "passed"),
    ("puts(\"passed\"); _exit(0);", "failed"),
]  # fmt: skip


def test_how_hostile_programs_end(compilers: Compilers) -> None:
    needs("c")
    quick = Programs(compilers, Limits(cpu_s=0.5, wall_s=300.0, memory_mb=128))
    jobs = [ProgramJob("c", HEAD + f"int main(void) {{ {body} return 0; }}", SUM[:1]) for body, _ in ENDINGS]
    results = quick.run_many(jobs)
    assert [None if one is None else one.status for one in results] == [status for _, status in ENDINGS]
    assert work_files() == []


def test_threads_are_allowed_but_bounded(programs: Programs) -> None:
    program = HEAD + (
        "static void *run(void *x) { return x; }\nint main(void) { pthread_t t; int n = 0; while (n < 3 && "
        '!pthread_create(&t, 0, run, 0)) { pthread_join(t, 0); n++; } printf("%d\\n", n); return 0; }'
    )
    assert judge(programs, "c", program, SUM[:1]).status == "passed"
    bomb = HEAD + (
        "static void *run(void *x) { pause(); return x; }\nint main(void) { pthread_t t; int n = 0; "
        'while (n < 20000 && !pthread_create(&t, 0, run, 0)) n++; puts(n < 20000 ? "3" : "unbounded"); return 0; }'
    )
    assert judge(programs, "c", bomb, SUM[:1]).status == "passed"


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("java", "public class A { static String no(java.util.concurrent.Callable<Object> c) { try { c.call(); return "
                 '"OPEN"; } catch (Throwable t) { return "refused"; } } public static void main(String[] a) { '
                 'System.out.println(no(() -> new java.net.Socket("127.0.0.1", 22)) + no(() -> '
                 'Runtime.getRuntime().exec("/bin/true")) + no(() -> java.nio.file.Files.readString('
                 'java.nio.file.Path.of("/etc/passwd"))) + no(() -> java.nio.file.Files.createFile('
                 'java.nio.file.Path.of("x"))) + no(() -> new java.net.ServerSocket(0))); } }'),
        ("javascript", "const no = f => { try { f(); return 'OPEN'; } catch (e) { return 'refused'; } };\n"
                       "const fs = require('fs'); const cp = require('child_process');\n"
                       "console.log(no(() => cp.execSync('/bin/true')) + no(() => fs.readFileSync('/etc/passwd')) + "
                       "no(() => fs.writeFileSync('x', 'y')) + no(() => process.kill(process.ppid, 9)) + "
                       "no(() => fs.readdirSync('/proc/1')));"),
    ],
)  # fmt: skip
def test_what_managed_programs_are_refused(programs: Programs, language: str, program: str) -> None:
    result = judge(programs, language, program, [IOTest("", "refused" * 5)])
    assert result.status == "passed", result


def test_forged_claims_of_a_function(programs: Programs) -> None:
    """Without the mark a print is ignored; a candidate that finds the mark can only claim values, and only once."""
    spam = "function f(x) { console.log('='.repeat(33) + 'true'); return false; }"
    assert judge(programs, "javascript", spam, [CallTest((1,), True)], "f").status == "failed"
    finder = (
        "const m = require('fs').readFileSync(0, 'utf8').split('\\n');\n"
        "for (let i = 0; i < 5; i++) console.log(m[0] + '=true');\nprocess.exit(0);\nfunction f() {}"
    )
    result = judge(programs, "javascript", finder, [CallTest((1,), True), CallTest((2,), True)], "f")
    assert result.status == "forged"
    assert not any(outcome.passed for outcome in result.per_test)


def test_jobs_are_checked(programs: Programs) -> None:
    with pytest.raises(ValueError, match="at least one test"):
        ProgramJob("c", "", ())
    with pytest.raises(ValueError, match="entry_point"):
        ProgramJob("c", "", (CallTest((1,), 1),))
    with pytest.raises(ValueError, match="cannot be run"):
        programs.run(ProgramJob("cobol", "", SUM))
    with pytest.raises(ValueError, match="must be a name"):
        program_with_driver("cpp", "", "f(); system", [])
    with pytest.raises(ValueError, match="cannot be passed"):
        program_with_driver("c", "", "f", [CallTest(({},), 1)])
