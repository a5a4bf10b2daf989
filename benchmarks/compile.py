"""Measures compile feedback: Java by one persistent compiler against a JVM start each, C++ with precompiled headers.

Usage: ``python benchmarks/compile.py [--programs 20] [--out benchmarks/results/compile.json]``. The two sides of each
comparison alternate program by program, so that other load on the machine falls on both; CPU seconds (of all threads,
just-in-time compilation and garbage collection included) move less under load than wall-clock seconds, and both are
reported. Every program is different, so nothing comes from the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.provenance import measured, write
from lightning_dterm.sandbox.languages import CompileLimits, Compilers, IOTest, ProgramJob, Programs
from lightning_dterm.sandbox.languages.gcc import CCompiler
from lightning_dterm.sandbox.result import Limits

LIMITS = CompileLimits(cpu_s=60.0, wall_s=900.0)
JAVA = """import java.util.*;
public class Task%(n)d {
    static Map<String, List<Integer>> group(List<String> words) {
        Map<String, List<Integer>> found = new TreeMap<>();
        for (int i = 0; i < words.size(); i++) {
            found.computeIfAbsent(words.get(i).toLowerCase(), key -> new ArrayList<>()).add(i * %(n)d);
        }
        return found;
    }
    public static void main(String[] args) {
        System.out.println(group(Arrays.asList(args)).values().stream().mapToInt(List::size).sum());
    }
}
"""
CPP = """%(headers)s
using namespace std;
int main() {
    map<string, vector<int>> found;
    for (int i = 0; i < %(n)d; ++i) found[to_string(i %% 7)].push_back(i);
    for (auto &[key, places] : found) {
        sort(places.rbegin(), places.rend());
        cout << key << places.size() << endl;
    }
}
"""
EVERYTHING = "#include <bits/stdc++.h>"
SOME = "#include <algorithm>\n#include <iostream>\n#include <map>\n#include <string>\n#include <vector>"
C = '#include <stdio.h>\nint main(void) { int x = %(n)d; printf("%%d\\n", x); return 0; }\n'
JS = "const f = x => x * %(n)d;\nconsole.log(f(2));\n"


def process_cpu(word: str) -> float:
    """CPU seconds so far of this process's descendants whose command line holds ``word``."""
    parents, cpu = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                line = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            parents[int(name)] = int(stat[1])
            if word.encode() in line:
                cpu[int(name)] = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return sum(seconds for pid, seconds in cpu.items() if _below(pid, parents))


def _below(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid == os.getpid():
            return True
        pid = parents[pid]
    return False


def timed(work: Callable[[], Any], cpu: Callable[[], float]) -> tuple[float, float]:
    """Wall and CPU seconds of one piece of work."""
    before, started = cpu(), time.perf_counter()
    work()
    return time.perf_counter() - started, cpu() - before


def children_cpu() -> float:
    """CPU seconds of ended children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    """Medians and rates of (wall, CPU) pairs."""
    wall = [pair[0] for pair in times]
    cpu = [pair[1] for pair in times]
    return {
        "programs": len(times),
        "wall_s_median": round(statistics.median(wall), 5),
        "wall_s_min": round(min(wall), 5),
        "programs_per_s": round(len(times) / sum(wall), 3),
        "cpu_s_mean": round(sum(cpu) / len(cpu), 5),
    }


def ratios(slow: dict[str, float], fast: dict[str, float]) -> dict[str, float]:
    """How many times faster, by rate, best wall clock and CPU."""
    return {
        "rate": round(fast["programs_per_s"] / slow["programs_per_s"], 2),
        "wall_min": round(slow["wall_s_min"] / fast["wall_s_min"], 2),
        "cpu": round(slow["cpu_s_mean"] / max(fast["cpu_s_mean"], 1e-9), 2),
    }


def java(compilers: Compilers, programs: int) -> dict[str, Any]:
    """One persistent compiler against ``javac`` once a program, after two programs of warm-up."""
    javac = compilers.backends["java"].path
    assert javac is not None
    persistent, fresh = [], []
    with tempfile.TemporaryDirectory() as folder:
        for n in range(-2, programs):
            source = JAVA % {"n": n + 1000}
            file = Path(folder, f"Task{n + 1000}.java")
            file.write_text(source, encoding="utf-8")
            pair = timed(lambda source=source: _ok(compilers.check("java", source)), lambda: process_cpu("JavacServer"))  # type: ignore[misc]
            command = [javac, "-proc:none", "-d", folder, str(file)]
            other = timed(lambda command=command: subprocess.run(command, check=True), children_cpu)  # type: ignore[misc]
            if n >= 0:
                persistent.append(pair)
                fresh.append(other)
    one, each = summary(persistent), summary(fresh)
    return {"persistent": one, "jvm_start_each": each, "times_faster": ratios(each, one)}


def cpp(compilers: Compilers, programs: int, headers: str) -> dict[str, Any]:
    """Checks with and without precompiled headers; the one build of the headers is reported apart."""
    building = 0.0
    for n in range(3):
        started = time.perf_counter()
        _ok(compilers.check("cpp", CPP % {"headers": headers, "n": n}))
        building = max(building, time.perf_counter() - started)
    precompiled: list[tuple[float, float]] = []
    plain: list[tuple[float, float]] = []
    with Compilers(slots=1, limits=LIMITS, backends=[CCompiler(precompile=False)]) as bare:
        bare.check("cpp", "int main() {}\n")
        for n in range(100, 100 + programs):
            source = CPP % {"headers": headers, "n": n}
            for box, times in ((compilers, precompiled), (bare, plain)):
                started = time.perf_counter()
                report = _ok(box.check("cpp", source))
                times.append((time.perf_counter() - started, report.cpu_s))
    with_headers, without = summary(precompiled), summary(plain)
    size = sum(path.stat().st_size for path in Path(compilers.headers).glob("*.gch"))
    return {
        "precompiled": with_headers, "plain": without, "times_faster": ratios(without, with_headers),
        "building_the_headers_wall_s": round(building, 3), "all_precompiled_bytes": size,
    }  # fmt: skip


def others(compilers: Compilers, programs: int) -> dict[str, Any]:
    """C and JavaScript checks, and C programs built and run."""
    found: dict[str, Any] = {}
    for language, template in (("c", C), ("javascript", JS)):
        if compilers.supports(language):
            _ok(compilers.check(language, template % {"n": -1}))
            times = []
            for n in range(programs):
                started = time.perf_counter()
                report = _ok(compilers.check(language, template % {"n": n}))
                times.append((time.perf_counter() - started, report.cpu_s))
            found[language] = summary(times)
    if compilers.supports("c"):
        runner = Programs(compilers, Limits(wall_s=300.0))
        times = []
        for n in range(programs):
            started = time.perf_counter()
            result = runner.run(ProgramJob("c", C % {"n": 10_000 + n}, (IOTest("", str(10_000 + n)),)))
            assert result is not None
            assert result.passed, result
            found["level"] = result.level
            times.append((time.perf_counter() - started, result.cpu_s))
        found["c_built_and_run"] = summary(times)
    return found


def _ok(report: Any) -> Any:
    if report is None or report.status != "ok" or report.cached:
        raise SystemExit(f"a program of the benchmark did not compile: {report}")
    return report


def main() -> None:
    """Run everything that this machine has compilers for, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=20, help="programs per comparison")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/compile.json")
    options = parser.parse_args()
    results: dict[str, Any] = {**measured(), "load": round(os.getloadavg()[0], 2), "nice": os.nice(0)}
    with Compilers(slots=1, limits=LIMITS) as compilers:
        results["compilers"] = compilers.describe()
        if compilers.supports("java"):
            results["java"] = java(compilers, options.programs)
        if compilers.supports("cpp") and shutil.which("g++"):
            results["cpp_bits_stdcpp"] = cpp(compilers, options.programs, EVERYTHING)
            results["cpp_five_headers"] = cpp(compilers, options.programs, SOME)
        results["others"] = others(compilers, options.programs)
    print(json.dumps(results, indent=2))
    write(options.out, results)


if __name__ == "__main__":
    main()
