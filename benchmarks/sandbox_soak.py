"""Soak test of the sandbox: many programs, some hostile, accidents at random; nothing may leak or be lost.

    python benchmarks/sandbox_soak.py --programs 50000 --seed 0

Every program is honest (right or wrong) or, at the given share, drawn from the hostile table of the tests. The report
compares every verdict with what it must be, and processes, files, descriptors and memory after the first tenth with
those at the end. With ``--kills`` a process of the sandbox is killed (SIGKILL) about every so many programs: its jobs
must be judged again, or be ``infra``; never lost, never wrong.
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

from lightning_dterm.sandbox import Job, Limits, Result, Sandbox  # noqa: E402
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


def family(pid: int) -> list[int]:
    """The processes below ``pid``."""
    found, pending = [], [pid]
    while pending:
        try:  # a process may end while it is looked at
            texts = [path.read_text() for path in Path(f"/proc/{pending.pop()}/task").glob("*/children")]
        except OSError:
            continue
        below = [int(child) for text in texts for child in text.split()]
        found += below
        pending += below
    return found


def snapshot(box: Sandbox, folder: Path) -> dict[str, Any]:
    """Processes, files, descriptors and resident memory of the judge and its zygotes, while nothing runs."""
    judge = box._client.pid
    assert judge is not None
    pids = [judge, *family(judge)]
    resident = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 for pid in pids]
    return {
        "processes": len(pids),
        "files": sum(len(files) for _, _, files in os.walk(folder)),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids) + len(os.listdir("/proc/self/fd")),
        "resident_kb": sum(resident),
    }


def kill_one(box: Sandbox, random_: random.Random) -> bool:
    """SIGKILL a process of the sandbox, whichever; whether there was one."""
    judge = box._client.pid
    pids = [judge, *family(judge)] if judge else []
    if not pids:
        return False
    try:
        os.kill(random_.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run it all; the report."""
    random_ = random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    first: dict[str, Any] = {}
    kills = done = 0
    started = time.monotonic()
    with Sandbox(slots=arguments.slots, limits=Limits(wall_s=20.0)) as box:
        while done < arguments.programs:
            batch = [draw(random_, arguments.hostile) for _ in range(min(250, arguments.programs - done))]
            results = box.run_many([job for job, _ in batch], lazy=True)
            for (job, statuses), result in zip(batch, results, strict=True):
                _check(job, statuses, result, wrong, counts, arguments.kills > 0)
                done += 1
                if arguments.kills and random_.random() < 1 / arguments.kills:
                    kills += kill_one(box, random_)
            if not first and done >= arguments.programs / 10:
                first = snapshot(box, folder)
        last = snapshot(box, folder)
        report = {"level": box.level.label, "judges_replaced": box._client.restarts}
    left = sorted(os.listdir(folder))
    return {
        **report, "programs": done, "seed": arguments.seed, "hostile": arguments.hostile, "kills": kills,
        "seconds": round(time.monotonic() - started, 1), "statuses": dict(counts), "wrong": wrong[:20],
        "n_wrong": len(wrong), "after_a_tenth": first, "at_the_end": last, "left_behind": left,
    }  # fmt: skip


def _check(
    job: Job, statuses: set[str], result: Result, wrong: list[str], counts: Counter[str], accidents: bool
) -> None:
    counts[result.status] += 1
    if result.status == "infra" and accidents:
        return
    if result.status not in statuses or len(result.per_test) != len(job.tests):
        wrong.append(f"{job.program[:200]!r}: {str(result)[:400]}")


def main() -> int:
    """Command line; 0 if nothing leaked and every verdict was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=50_000)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of hostile programs")
    parser.add_argument("--kills", type=int, default=0, help="SIGKILL something about every so many programs; 0: never")
    parser.add_argument("--slots", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="write the report here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tempfile.tempdir = name
        report = soak(arguments, Path(name))
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    before, after = report["after_a_tenth"], report["at_the_end"]
    bounds = {"processes": 0, "files": 0, "descriptors": 4, "resident_kb": 4096 + before["resident_kb"] // 5}
    leaked = [key for key, more in bounds.items() if after[key] > before[key] + more]
    if arguments.kills:
        leaked = []  # slots and judges come and go: only verdicts, and what is left behind, count
    return 1 if leaked or report["n_wrong"] or report["left_behind"] else 0


if __name__ == "__main__":
    sys.exit(main())
