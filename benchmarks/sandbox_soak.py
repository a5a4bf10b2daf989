"""Soak test of the sandbox: many programs, some hostile, accidents at random; nothing may leak or be lost.

    python benchmarks/sandbox_soak.py --programs 50000 --seed 0 [--killed 10000] [--kills 50] [--slots N]
        [--out benchmarks/results/sandbox_soak.json]

Every program is honest (right or wrong) or, at the given share, drawn from the hostile table of the tests. The report
compares every verdict with what it must be, and processes, files, descriptors and memory after the first tenth with
those at the end. Then ``--killed`` programs run while the judge, a zygote or a program's process is killed (SIGKILL)
about every ``--kills`` programs: its jobs must be judged again, or be ``infra``; never lost, never wrong. Exits with 1
if anything leaked, was lost or wrong, or stayed behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from benchmarks.provenance import measured, write  # noqa: E402
from lightning_dterm.sandbox import Job, Level, Limits, Result, Sandbox  # noqa: E402
from lightning_dterm.types import CallTest  # noqa: E402
from tests.sandbox_hostile import HOSTILE, PATIENT, SECRET  # noqa: E402

LIMITS = Limits(cpu_s=0.3, wall_s=10.0, memory_mb=192, restarts=0)
IMPATIENT = Limits(cpu_s=0.3, wall_s=0.5, memory_mb=192, restarts=0)
SLOW = {"ignores_signals", "blocks_signals", "inode_flood", "disk_flood"}  # seconds each: the tests have them


def draw(random_: random.Random, share: float) -> tuple[Job, set[str]]:
    """A job and the statuses it may end with."""
    if random_.random() < share:
        name = random_.choice([name for name in HOSTILE if name not in SLOW])
        tests = tuple(CallTest((x,), SECRET) for x in range(2, 6))
        limits = IMPATIENT if name in PATIENT else LIMITS
        return Job(HOSTILE[name][0], "f", tests, limits=limits), HOSTILE[name][1]
    k, wrong = random_.randrange(10**6), random_.random() < 0.3
    program = f"def f(x):\n    return [x * {k} % 1009, str(x)]\n"
    tests = tuple(CallTest((x,), [(x * k + (wrong and x == 3)) % 1009, str(x)]) for x in range(5))
    return Job(program, "f", tests), {"failed"} if wrong else {"passed"}


def below(pid: int) -> list[int]:
    """The children of ``pid``."""
    try:  # a process may end while it is looked at
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]


def family(pid: int) -> list[int]:
    """The processes below ``pid``."""
    found, pending = [], [pid]
    while pending:
        found += (children := below(pending.pop()))
        pending += children
    return found


def snapshot(box: Sandbox, folder: Path) -> dict[str, int]:
    """Processes, files, descriptors and resident memory of the judge and its zygotes, while nothing runs; and ours."""
    time.sleep(2.0)  # processes that find their program taken back end after the last verdict
    judge = box._client.pid
    assert judge is not None
    pids = [judge, *family(judge)]
    return {
        "processes": len(pids),
        "files": sum(len(files) for _, _, files in os.walk(folder)),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids) + len(os.listdir("/proc/self/fd")),
        "resident_kb": sum(map(resident_kb, pids)),
        "trainer_resident_kb": resident_kb(os.getpid()),
    }


def resident_kb(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def kill_one(box: Sandbox, random_: random.Random) -> str:
    """SIGKILL the judge, a zygote or a program's process, as chance has it; which, or nothing where there was none."""
    judge = box._client.pid
    if judge is None:
        return ""
    of_zygotes = 2 if box.level == Level.NAMESPACES else 1  # processes that each has, from the outside in
    layers = [[judge]]
    while layers[-1]:
        layers.append([pid for above in layers[-1] for pid in below(above)])
    candidates = {
        "judge": [judge],
        "zygote": [pid for layer in layers[1 : 1 + of_zygotes] for pid in layer],
        "program": [pid for layer in layers[1 + of_zygotes :] for pid in layer],
    }
    kind = random_.choice([kind for kind, pids in candidates.items() if pids])
    try:
        os.kill(random_.choice(candidates[kind]), signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return kind


def soak(arguments: argparse.Namespace, programs: int, kills: int, folder: Path) -> dict[str, Any]:
    """Run so many programs, with a kill about every ``kills`` if that is not 0; the report."""
    random_ = random.Random(arguments.seed)
    accidents = random.Random(arguments.seed + 1)
    statuses, killed, again = Counter[str](), Counter[str](), 0
    wrong: list[str] = []
    first: dict[str, int] = {}
    done = 0
    started = time.monotonic()
    with Sandbox(slots=arguments.slots, limits=Limits(wall_s=20.0)) as box:
        while done < programs:
            batch = [draw(random_, arguments.hostile) for _ in range(min(1000, programs - done))]
            results = box.run_many([job for job, _ in batch], lazy=True)
            for (job, expected), result in zip(batch, results, strict=True):
                statuses[result.status] += 1
                again += result.attempts > 1
                done += 1
                if not _right(job, expected, result, bool(kills)):
                    wrong.append(f"{job.program[:200]!r}: {str(result)[:400]}")
                if kills and accidents.random() < 1 / kills:
                    killed[kill_one(box, accidents)] += 1
            if not kills and not first and done >= programs / 10:
                first = snapshot(box, folder)
        seen = {} if kills else {"after_a_tenth": first, "at_the_end": snapshot(box, folder)}
        report = {"level": box.level.label, "slots": box.slots, "judges_replaced": box._client.restarts}
    seconds = time.monotonic() - started
    deadline = time.monotonic() + 10
    while (family(os.getpid()) or os.listdir(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {
        **report, "programs": done, "seed": arguments.seed, "hostile": arguments.hostile,
        "killed": {kind: count for kind, count in sorted(killed.items()) if kind}, "judged_more_than_once": again,
        "seconds": round(seconds, 1), "programs_per_s": round(done / seconds, 1), "statuses": dict(statuses),
        "n_wrong": len(wrong), "wrong": wrong[:20], **seen, "processes_left": len(family(os.getpid())),
        "files_left": sorted(os.listdir(folder)),
    }  # fmt: skip


def _right(job: Job, expected: set[str], result: Result, accidents: bool) -> bool:
    allowed = expected | {"infra"} if accidents else expected
    return result.status in allowed and len(result.per_test) == len(job.tests)


def faults(report: dict[str, Any]) -> list[str]:
    """What must not be in a report."""
    found = [key for key in ("n_wrong", "processes_left", "files_left") if report[key]]
    if sum(report["statuses"].values()) != report["programs"]:
        found.append("lost results")
    if "after_a_tenth" not in report:
        return found
    before, after = report["after_a_tenth"], report["at_the_end"]
    bounds = {"processes": 0, "files": 0, "descriptors": 4, "resident_kb": 4096 + before["resident_kb"] // 5,
              "trainer_resident_kb": 8192}  # fmt: skip
    return found + [key for key, more in bounds.items() if after[key] > before[key] + more]


def main() -> int:
    """Command line; 0 if nothing leaked and every verdict was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=50_000)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of hostile programs")
    parser.add_argument("--killed", type=int, default=10_000, help="further programs, among which processes are killed")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILL something about every so many of them")
    parser.add_argument("--slots", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sandbox_soak.json"))
    arguments = parser.parse_args()
    load = [round(value, 2) for value in os.getloadavg()]
    with tempfile.TemporaryDirectory() as name:
        tempfile.tempdir = name
        reports = {"undisturbed": soak(arguments, arguments.programs, 0, Path(name))}
        if arguments.killed:
            reports["with_kills"] = soak(arguments, arguments.killed, arguments.kills, Path(name))
    found = {name: faults(report) for name, report in reports.items()}
    result = {**measured(), "niceness": os.nice(0), "load_before": load, **reports, "faults": found}
    write(arguments.out, result)
    print(json.dumps(result, indent=2))
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
