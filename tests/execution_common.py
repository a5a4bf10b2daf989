"""Shared by the tests of the judge: programs that add two numbers, tasks with tests of every kind, their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_dterm.execution import Request, judge_for
from lightning_dterm.rewards import RewardSuite, TestsReward
from lightning_dterm.sandbox import Limits, Result, Sandbox
from lightning_dterm.types import CodeTask, RewardResult, Sample
from tests.rewards_common import make_task

LIMITS = Limits(cpu_s=2.0, wall_s=300.0)
# Each reads two numbers and prints their sum; what follows "SUM" in each is replaced to make faults.
SUMS = {
    "python": "a, b = map(int, input().split())\nprint(a + b)\n",
    "c": '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); return 0; }',
    "c++": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }",
    "java": "import java.util.*; class Main { public static void main(String[] x) { Scanner s = new "
            "Scanner(System.in); int a = s.nextInt(), b = s.nextInt(); System.out.println(a + b); } }",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\nconsole.log(a + b);",
}  # fmt: skip
# 2 + 2 = 2 * 2: of the visible three, multiplying passes one; of the hidden two, one.
PAIRS = [(2, 2, True), (1, 2, True), (40, 2, True), (0, 0, False), (5, 7, False)]
TEXTS = [{"stdin": f"{a} {b}\n", "expected": f"{a + b}\n", "visible": shown} for a, b, shown in PAIRS]


def text_task(language: str, **metadata: Any) -> CodeTask:
    metadata = {"io_tests": TEXTS, **metadata}
    return make_task(language=language, tests=(), entry_point=None, metadata=metadata, reference=SUMS["python"])


def assert_task(*tests: str, hidden: Sequence[str] = (), **changes: Any) -> CodeTask:
    entries = [{"test": test} for test in tests] + [{"test": test, "visible": False} for test in hidden]
    metadata = {"assert_tests": entries, **changes.pop("metadata", {})}
    return make_task(tests=(), metadata=metadata, **changes)


def judged(box: Sandbox, task: CodeTask, *programs: str, cost: bool = False) -> list[Result]:
    results = judge_for(box).run([Request(task, program, cost) for program in programs])
    assert None not in results
    return [result for result in results if result is not None]


def scored(box: Sandbox, task: CodeTask, *programs: str) -> list[RewardResult]:
    suite = RewardSuite([TestsReward()], box)
    suite.setup()
    samples = [Sample(task, program, ((0, len(program)),)) for program in programs]
    return [row["tests"] for row in suite.score(samples).results]


CALLED = {
    "c": "int f(int x) { return x * x; }",
    "c++": "int f(int x) { return x * x; }",
    "java": "class Solution { static int f(int x) { return x * x; } }",
    "javascript": "function f(x) { return x * x; }",
}
