"""``python -m lightning_dterm.sandbox doctor``: what isolation this machine grants, and how to get the rest."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from pathlib import Path

from lightning_dterm.sandbox.languages import Compilers
from lightning_dterm.sandbox.languages.process import FENCES as LAUNCHER_FENCES
from lightning_dterm.sandbox.levels import DEFAULT_LEVEL, FENCES, Level, level_of, missing_for
from lightning_dterm.sandbox.result import Job
from lightning_dterm.sandbox.sandbox import Sandbox, default_slots
from lightning_dterm.sandbox.slot import SandboxUnavailable
from lightning_dterm.types import CallTest

_WHAT = {
    "seccomp": "system calls: no sockets, processes, programs, signals to others",
    "landlock": "files: the standard library and a scratch folder only",
    "mount": "file tree of its own, a bounded tmpfs for each program",
    "user": "users of its own, no privileges outside",
    "pid": "processes of its own, one kill ends all",
    "net": "no network devices",
    "ipc": "no shared memory or queues of others",
    "uid": "a uid for each slot: limits on processes count, nothing shared with other users",
}
_ALWAYS = "rlimits, no new privileges, no capabilities, private result channel, output caps, wall-clock kill"


def doctor(slots: int) -> int:
    """Start the real sandbox, let its canaries attack it, print the capability table; 0 if the default level holds."""
    print(f"{platform.system()} {platform.release()} {platform.machine()}, CPython {platform.python_version()}, "
          f"uid {os.geteuid() if hasattr(os, 'geteuid') else '-'}, {default_slots()} slots by default")  # fmt: skip
    if not sys.platform.startswith("linux"):
        try:
            Sandbox()
        except SandboxUnavailable as error:
            print(error)
        return 1
    started = time.perf_counter()
    try:
        with Sandbox(slots=1, min_level=Level.PROCESS) as box:
            state = box.states()[0]
            start_s = time.perf_counter() - started
            rate = _throughput(slots)
    except SandboxUnavailable as error:
        print(error)
        return 1
    level = level_of(state.fences)
    print(f"\n{'fence':<10} {'holds':<6} what it does")
    print(f"{'(always)':<10} {'yes':<6} {_ALWAYS}")
    for name in FENCES:
        print(f"{name:<10} {'yes' if name in state.fences else 'NO':<6} {_WHAT[name]}")
    present, why = cgroups()
    print(f"{'cgroup':<10} {'there' if present else 'NO':<6} never used: {why}")
    print(f"\nlevel: {level.label} (default minimum: {DEFAULT_LEVEL.label}); canaries ran")
    print(f"start: {start_s:.2f} s; {rate:.0f} small programs per second on {slots} slots")
    print("\n" + "\n".join(compilers()))
    for missing in missing_for(Level.NAMESPACES, state.fences):
        print(f"missing for level 'namespaces': {missing}: {FENCES[missing]}")
    if state.reasons:
        print(f"the kernel said: {state.reasons}")
    return 0 if level >= DEFAULT_LEVEL else 1


def compilers() -> list[str]:
    """What compiles here, what runs, what to install; and, of the real launcher, how far both are isolated."""
    with Compilers(slots=1, allow_missing=sorted(LAUNCHER_FENCES)) as found:
        lines = []
        for name, backend in sorted(found.backends.items()):
            runs = ", programs run" if backend.runs else ""
            lines.append(
                f"{name:<10} " + (f"{backend.version}{runs}" if backend.path else f"NO: install {backend.package}")
            )
        try:
            level, fences, reasons = found.isolation()
        except SandboxUnavailable as error:
            return [*lines, f"compilers and compiled programs: none can be isolated: {error}"]
    said = f"; the kernel said: {reasons}" if reasons else ""
    return [*lines, f"compilers and compiled programs: level {level} ({', '.join(sorted(fences))}){said}"]


def cgroups(proc: str = "/proc/self", root: str = "/sys/fs/cgroup") -> tuple[bool, str]:
    """Whether memory and pids controllers of cgroup v2 are delegated to this process, and what stands in for them.

    The sandbox does not use them: a delegated group takes controllers only once every process has left it, the trainer
    and whatever else its manager put there, which is not a library's to move.
    """
    stand_in = "address-space and process limits per program, and the out-of-memory killer takes programs first"
    try:
        lines = Path(proc, "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = Path(proc, "mountinfo").read_text(encoding="utf-8")
    except OSError:
        return False, f"no cgroups in /proc; {stand_in}"
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    places = re.findall(r"^(?:\S+ ){3}(/\S*) (\S+) .* - cgroup2 ", mounts, re.MULTILINE)
    if path is None or not places:
        return False, f"no cgroup v2; {stand_in}"
    folder = Path(places[0][1] if root == "/sys/fs/cgroup" else root, path.lstrip("/"))
    try:
        controllers = set((folder / "cgroup.controllers").read_text(encoding="ascii").split())
    except OSError:
        controllers = set()
    missing = {"memory", "pids"} - controllers
    if missing:
        return False, f"no {' and no '.join(sorted(missing))} controller for this process; {stand_in}"
    if not os.access(folder, os.W_OK) or not os.access(folder / "cgroup.procs", os.W_OK):
        return False, f"not delegated to this user; {stand_in}"
    return True, f"its processes would have to move; {stand_in}"


def _throughput(slots: int, programs: int = 100) -> float:
    jobs = [Job(f"def f(x):\n    return x * {i}\n", "f", (CallTest((3,), 3 * i),)) for i in range(programs)]
    with Sandbox(slots=slots, min_level=Level.PROCESS) as box:
        box.run_many(jobs[: 2 * slots])
        started = time.perf_counter()
        assert all(result.passed for result in box.run_many(jobs))
        return programs / (time.perf_counter() - started)


def _slots(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lightning_dterm.sandbox", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("doctor", help="print what isolation this machine grants")
    command.add_argument(
        "--slots", type=_slots, default=default_slots(), help="programs at a time (default: all cores)"
    )
    return doctor(parser.parse_args(arguments).slots)


if __name__ == "__main__":
    sys.exit(main())
