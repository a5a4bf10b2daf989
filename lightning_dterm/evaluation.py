"""Judging completions by their tasks' own success metric, and writing what came out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lightning_dterm.attribution.extract import extract_code
from lightning_dterm.execution import Request, TaskJudge, judge_for
from lightning_dterm.metrics.aggregate import SampleRecord
from lightning_dterm.metrics.bleu import STATISTICS, bleu_statistics
from lightning_dterm.metrics.exact_match import exact_match
from lightning_dterm.sandbox.languages import Stage, canonical
from lightning_dterm.sandbox.result import Job, Result
from lightning_dterm.task_tests import TEST_LISTS, has_tests
from lightning_dterm.types import CodeTask, Sample

_TITLES = {
    "success": "success %",
    "exact_match": "exact %",
    "bleu": "BLEU-4",
    "compile_rate": "compiles %",
    "lint_per_100_lines": "lint /100 lines",
    "length": "tokens",
}
"""Columns of the table; what else is measured is in the JSON."""
_PERCENT = frozenset({"success", "exact_match", "compile_rate"})
_UNCLEAR = frozenset({"timeout", "memory", "output", "exited", "killed", "forged"})
"""Statuses that a program may reach while it is compiled as well as while it runs."""


class Runner(Protocol):
    """What the evaluator needs of a sandbox."""

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        """Judge programs; results in the order of ``jobs``."""

    def close(self) -> None:
        """End all workers."""


class ParseErrors(Protocol):
    """Counts syntax errors without a compiler."""

    def __call__(self, program: str, language: str) -> int | None:
        """Number of errors; None where the language has no parser here."""


class Lint(Protocol):
    """Runs the linter once over a batch of Python samples, none empty."""

    def __call__(self, samples: Sequence[Sample]) -> list[tuple[int, int] | None]:
        """Violations and lines of each completion's code; None where it does not parse."""


class Evaluator:
    """Scores completions: success, exact match, compiles, lint, BLEU statistics, length.

    Programs with tests, in any language that can be run here, are judged as rewards judge them
    (:class:`lightning_dterm.execution.TaskJudge`) and compile if their own compiler says so; Python programs are always
    compiled in the sandbox. Other programs without tests, or without their compiler, are parsed (tree-sitter, no error
    and nothing missing counts as compiling), and success by tests is unknown. An empty program neither compiles nor
    succeeds; lint counts only code that parses. Where the sandbox itself failed, success and compiling are unknown and
    the sample is counted as an infrastructure failure, never as a wrong program. Where a benchmark's test has to run in
    the program's own process (``trust="in_process"``), success is the program's claim, as in that benchmark's own
    harness: it counts, and ``claimed`` says of how many samples.

    Args:
        sandbox: Runs programs; default: an own ``Sandbox()``, started on first use, ended by :meth:`close`.
        parse_errors: Syntax check of programs that are not compiled; default: tree-sitter.
        lint: Linter of Python programs; default: Ruff.
    """

    def __init__(
        self, sandbox: Runner | None = None, parse_errors: ParseErrors | None = None, lint: Lint | None = None
    ) -> None:
        self._sandbox, self._own_sandbox = sandbox, sandbox is None
        self._parse_errors = parse_errors or _tree_sitter_errors
        self._lint = lint or _ruff

    def close(self) -> None:
        """End the evaluator's own sandbox, if one was started; one that was handed in is left alone."""
        if self._own_sandbox and self._sandbox is not None:
            self._judge.close()
            self._sandbox.close()
            self._sandbox = None

    def evaluate(
        self,
        tasks: Sequence[CodeTask],
        texts: Sequence[str],
        lengths: Sequence[int],
        truncated: Sequence[bool] | None = None,
    ) -> list[SampleRecord]:
        """Score one batch.

        Args:
            tasks: The tasks, one per completion.
            texts: Completions without special tokens.
            lengths: Tokens per completion.
            truncated: True where generation hit the length limit; None: nowhere.

        Returns:
            One record per completion.

        Raises:
            ValueError: if the sequences differ in length.
        """
        cut = [False] * len(tasks) if truncated is None else list(truncated)
        if not len(tasks) == len(texts) == len(lengths) == len(cut):
            raise ValueError(
                f"need one text, length and truncation flag a task, got {len(texts)}, {len(lengths)} and {len(cut)} "
                f"for {len(tasks)} tasks"
            )
        samples = [
            Sample(task, text, extract_code(text, task.language), truncated=bool(flag))
            for task, text, flag in zip(tasks, texts, cut, strict=True)
        ]
        results = self._run(samples)
        compiles = self._compiles(samples, results)
        columns = zip(samples, lengths, results, compiles, self._linted(samples), strict=True)
        return [_record(*row) for row in columns]

    @property
    def _judge(self) -> TaskJudge:
        if self._sandbox is None:
            from lightning_dterm.sandbox import Sandbox

            self._sandbox = Sandbox()
        return judge_for(self._sandbox)

    def _run(self, samples: Sequence[Sample]) -> list[Result | None]:
        """Results of the non-empty programs that can be run (with tests) or compiled in the sandbox (Python)."""
        rows = [row for row, sample in enumerate(samples) if not _empty(sample) and self._is_run(sample.task)]
        results: list[Result | None] = [None] * len(samples)
        if rows:
            found = self._judge.run([_request(samples[row]) for row in rows])
            for row, result in zip(rows, found, strict=True):
                results[row] = result
        return results

    def _is_run(self, task: CodeTask) -> bool:
        if canonical(task.language) == "python":
            return True
        return task.success_metric == "tests" and has_tests(task) and self._judge.runs(task.language)

    def _compiles(self, samples: Sequence[Sample], results: Sequence[Result | None]) -> list[bool | None]:
        compiles: list[bool | None] = [None] * len(samples)
        unclear: list[int] = []
        for row, (sample, result) in enumerate(zip(samples, results, strict=True)):
            if sample.task.language == "text":
                continue
            if _empty(sample):
                compiles[row] = False
            elif result is None:
                errors = self._parse_errors(sample.program, sample.task.language)
                compiles[row] = None if errors is None else errors == 0
            elif canonical(sample.task.language) != "python":
                unclear.append(row)
            elif result.compile_error is not None:
                compiles[row] = False
            elif result.status in _UNCLEAR:
                unclear.append(row)
            elif result.status != "infra":
                compiles[row] = True
        for row, verdict in zip(unclear, self._compiled([samples[row] for row in unclear]), strict=True):
            compiles[row] = verdict
        return compiles

    def _compiled(self, samples: Sequence[Sample]) -> list[bool | None]:
        """Whether programs compile, asked of their compilers alone; None where those failed by our fault."""
        python = [row for row, sample in enumerate(samples) if canonical(sample.task.language) == "python"]
        others = [row for row in range(len(samples)) if row not in python]
        verdicts: list[bool | None] = [None] * len(samples)
        if python:
            results = self._judge.sandbox.run_many([Job(samples[row].program, None) for row in python])
            for row, result in zip(python, results, strict=True):
                verdicts[row] = None if result.status == "infra" else result.status == "passed"
        if others:
            programs: list[tuple[str, str, Stage]] = [
                (samples[row].task.language, samples[row].program, "full") for row in others
            ]
            for row, report in zip(others, self._judge.compilers.check_many(programs), strict=True):
                if report is not None and report.status != "infra":
                    verdicts[row] = report.status == "ok"
        return verdicts

    def _linted(self, samples: Sequence[Sample]) -> list[tuple[int, int] | None]:
        """Violations and lines of the non-empty Python completions, from one linter call."""
        linted: list[tuple[int, int] | None] = [None] * len(samples)
        rows = [row for row, one in enumerate(samples) if canonical(one.task.language) == "python" and not _empty(one)]
        if rows:
            for row, found in zip(rows, self._lint([samples[row] for row in rows]), strict=True):
                linted[row] = found
        return linted


def _empty(sample: Sample) -> bool:
    return not sample.code.strip()


def _request(sample: Sample) -> Request:
    """What the judge is asked; without the tests where success is exact match."""
    task = sample.task
    if task.success_metric != "tests":
        metadata = {key: value for key, value in task.metadata.items() if key not in TEST_LISTS}
        task = replace(task, tests=(), metadata=metadata)
    return Request(task, sample.program)


def _record(
    sample: Sample, length: int, result: Result | None, compiles: bool | None, linted: tuple[int, int] | None
) -> SampleRecord:
    task = sample.task
    accepted = tuple(task.metadata.get("accepted", ()))
    matches = exact_match(sample.code, task.reference, accepted, task.language) if task.reference or accepted else None
    return SampleRecord(
        task_id=task.task_id,
        task_type=task.task_type,
        length=int(length),
        success=_success(sample, result, matches),
        exact_match=matches,
        compiles=compiles,
        violations=linted[0] if linted else None,
        lines=linted[1] if linted else 0,
        truncated=sample.truncated,
        bleu=bleu_statistics(sample.code, task.reference) if task.reference else (0,) * STATISTICS,
        infrastructure=result is not None and result.status == "infra",
        claimed=sample.task.success_metric == "tests" and result is not None and result.claimed(),
    )


def _success(sample: Sample, result: Result | None, matches: bool | None) -> float | None:
    if sample.task.success_metric == "exact_match":
        return None if matches is None else float(matches)
    if not has_tests(sample.task):
        return None
    if result is None:
        return 0.0 if _empty(sample) else None
    return None if result.status == "infra" else float(result.passed)


def _tree_sitter_errors(program: str, language: str) -> int | None:
    from lightning_dterm.rewards.compile import parse_errors

    try:
        return len(parse_errors(program, language))
    except KeyError:
        return None


def _ruff(samples: Sequence[Sample]) -> list[tuple[int, int] | None]:
    from lightning_dterm.rewards.style import StyleReward

    details = [result.details for result in StyleReward().score(samples)]
    return [(len(found["violations"]), found["code_lines"]) if "violations" in found else None for found in details]


# --- output ----------------------------------------------------------------------------------------------------------


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def _cell(name: str, figure: Mapping[str, float | None]) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None or low is None or high is None:
        return "-"
    scale = 100.0 if name in _PERCENT else 1.0
    return f"{scale * value:.1f}\n{_short(scale * low)}-{_short(scale * high)}"


def format_table(results: Mapping[str, Any], title: str = "Results, with 95% bootstrap intervals") -> Table:
    """The figures of :meth:`SampleTable.compute`, one row per task type and one for all.

    Below each figure stands its interval; "-" means not applicable.
    """
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("task type", no_wrap=True)
    table.add_column("n", justify="right")
    for column in _TITLES.values():
        table.add_column(column, justify="right")
    groups = dict(sorted(results["tasks"].items()))
    if len(groups) != 1:
        groups["all"] = results["overall"]
    for kind, group in groups.items():
        if kind == "all":
            table.add_section()
        table.add_row(kind, str(group["samples"]), *[_cell(name, group[name]) for name in _TITLES])
    notes = []
    if failures := results["overall"]["infrastructure_failures"]:
        notes.append(f"sandbox failures: {failures}; these samples are left out of success and compiles")
    if claimed := results["overall"].get("claimed"):
        notes.append(f"success claimed by the program's own process, as in the benchmark's own harness: {claimed}")
    if notes:
        table.caption = "\n".join(notes)
    return table


def _replace(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, atomically; figures that do not apply are ``null``.

    Raises:
        ValueError: for a NaN or infinite number, which JSON cannot hold.
    """
    _replace(Path(path), json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_completions_jsonl(path: str | Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write completions as JSON lines ``{"task_id", "completion"}``, the format EvalPlus reads, atomically.

    Raises:
        KeyError: if a row lacks one of the two.
    """
    lines = [json.dumps({"task_id": row["task_id"], "completion": row["completion"]}) for row in rows]
    _replace(Path(path), "".join(f"{line}\n" for line in lines))
