"""What can be configured about style, and what length must not do to it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.rewards import StyleReward
from lightning_dterm.rewards import style as style_module
from lightning_dterm.types import CodeTask, Sample

TASK = CodeTask("t", "synthesis", "python", "", "", "")


def sample(text: str) -> Sample:
    return Sample(TASK, text, ((0, len(text)),))


def test_one_ruff_call_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = subprocess.run

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return real(*arguments, **options)

    reward = StyleReward()
    monkeypatch.setattr(style_module.subprocess, "run", counted)
    results = reward.score([sample(f"import os\n\n\ndef f_{n}():\n    return {n}\n") for n in range(50)])
    assert len(calls) == 1
    assert [result.value for result in results] == pytest.approx([1 - 1 / 3] * 50)


@pytest.mark.parametrize(("exists", "free", "there"), [(True, 1 << 20, True), (True, 20_000, False), (False, 0, False)])
def test_programs_are_written_to_memory_where_it_has_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exists: bool, free: int, there: bool
) -> None:
    memory = tmp_path / "memory"
    if exists:
        memory.mkdir()
        usage = shutil.disk_usage(memory)._replace(free=free)
        monkeypatch.setattr(style_module.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(style_module, "_MEMORY", str(memory))
    folders, real = [], subprocess.run

    def noted(*arguments: Any, **options: Any) -> Any:
        folders.append(Path(options["cwd"]).parent)
        return real(*arguments, **options)

    reward = StyleReward()
    monkeypatch.setattr(style_module.subprocess, "run", noted)
    results = reward.score(
        [sample("import os\n\n\ndef f():\n    return 1\n"), sample("x = '\u2028\\r'\nimport é\u2028\n")]
    )
    assert (folders == [memory]) == there
    assert results[0].value == pytest.approx(1 - 1 / 3)
    assert results[1].value == 0.0
    assert list(memory.glob("*")) == []


def test_security_and_bug_rules_are_on_and_each_violation_has_its_span() -> None:
    text = "def f(xs=[]):\n    return eval(xs[0])\n\n\nimport os\n"
    result = StyleReward().score([sample(text)])[0]
    found = dict(zip(result.details["violations"], result.spans, strict=True))
    assert {code: text[span.start : span.end] for code, span in found.items()} == {
        "B006": "[]",
        "S307": "eval(xs[0])",
        "E402": "import os",
        "F401": "os",
    }
    assert {code: span.weight for code, span in found.items()} == {"B006": 1.0, "S307": 1.0, "E402": 0.5, "F401": 1.0}
    only = StyleReward(select=["S"]).score([sample(text)])[0]
    assert only.details["violations"] == ("S307",)


def test_autofixable_violations_count_as_configured() -> None:
    text = "import os\nx = eval('1')\n"  # F401 has a safe fix, S307 none; two lines
    for factor, lost in ((1.0, 2.0), (0.5, 1.5), (0.0, 1.0)):
        result = StyleReward(autofixable=factor).score([sample(text)])[0]
        assert result.value == pytest.approx(1 - min(1.0, lost / 2))
        assert sum(span.weight for span in result.spans) == lost
        assert all(span.weight > 0 for span in result.spans)
    unsafe = "def f():\n    x = 1\n"  # F841's fix is not safe, so it counts whole
    assert StyleReward(autofixable=0.0).score([sample(unsafe)])[0].value == pytest.approx(1 - 1 / 2)


def test_severe_rules_count_as_configured() -> None:
    text = "x = eval('1')\ny = 2\nz = 3\nw = 4\n"
    for severity, value in ((1.0, 0.75), (0.2, 0.95)):
        result = StyleReward(severity={"S": 0.5, "S307": severity}).score([sample(text)])[0]
        assert result.value == pytest.approx(value)
        assert [span.weight for span in result.spans] == [severity]


@settings(max_examples=15, deadline=None)
@given(
    lines=st.lists(
        st.sampled_from(["x = eval('1')", "y = 1", "z = y if y == None else 2", "w = 1;", "v = [ 1]"]),
        min_size=1,
        max_size=6,
    ),
    times=st.integers(2, 4),
)
def test_longer_code_of_the_same_density_scores_the_same(lines: list[str], times: int) -> None:
    body = "y = 0\n" + "".join(f"{line}\n" for line in lines)
    once, more = StyleReward(ignore=["W292", "W291"]).score([sample(body), sample(body * times)])
    assert more.value == pytest.approx(once.value)
    clean = StyleReward().score([sample("x = 1\n" * times)])[0]
    assert clean.value == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"autofixable": 1.5}, "autofixable must lie in"),
        ({"autofixable": -0.1}, "autofixable must lie in"),
        ({"autofixable": float("nan")}, "autofixable must lie in"),
        ({"severity": {"S": 2.0}}, "severities must lie in"),
        ({"severity": {"s307": 1.0}}, "names no Ruff rule or prefix: s307"),
        ({"line_length": 0}, "line_length"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StyleReward(**settings)


REAL_RUN = subprocess.run


def ended(monkeypatch: pytest.MonkeyPatch, *codes: int | None) -> list[int | None]:
    """Let Ruff end with these codes, one a call; the last ones go on, None is Ruff itself."""
    left = list(codes)

    def run(command: Any, **options: Any) -> Any:
        code = left.pop(0) if len(left) > 1 else left[0]
        return REAL_RUN(command, **options) if code is None else subprocess.CompletedProcess(command, code, b"", b"")

    monkeypatch.setattr(style_module.subprocess, "run", run)
    return left


@pytest.mark.parametrize("code", [-9, -15, 137, 143])
def test_a_ruff_killed_from_outside_is_no_fault_of_the_program(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    ended(monkeypatch, code)
    results = StyleReward().score([sample("x = 1\n"), sample(""), sample("import os\n")])
    assert [result.value for result in results] == [None, 0.0, None]
    assert all("signal" in str(results[index].error) and "Ruff" in str(results[index].error) for index in (0, 2))
    ended(monkeypatch, code, None)  # once is chance
    assert [result.value for result in StyleReward().score([sample("x = 1\n"), sample("y = 2\n")])] == [1.0, 1.0]


@pytest.mark.parametrize("code", [-6, -11, 134, 139])
def test_a_program_that_crashes_ruff_gets_0_and_no_other_does(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    ended(monkeypatch, code, code, None)
    results = StyleReward().score([sample("x = 1\n"), sample("y = 2\n")])
    assert [result.value for result in results] == [0.0, 1.0]
    assert results[0].details == {"crashed_ruff": True}


@pytest.mark.parametrize("code", [-1, -7, 2, 129])
def test_another_end_of_ruff_is_an_error_of_the_reward(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    ended(monkeypatch, code)
    with pytest.raises(RuntimeError, match=f"ruff failed with exit code {code}"):
        StyleReward().score([sample("x = 1\n")])


BAD = "import os,sys\neval(input())\ntry:\n    x=1\nexcept:\n    pass\n"


@pytest.mark.parametrize("padding", ['"""\n' + "a\n" * 200 + '"""\n', "(\n" + "1,\n" * 200 + ")\n", "pass\n" * 200])
def test_lines_that_say_nothing_cannot_buy_off_violations(padding: str) -> None:
    reference = "def f(x):\n    # doubles\n    return 2 * x\n" * 3  # 6 code lines
    task = dataclasses.replace(TASK, reference=reference)
    text = BAD + padding
    short, long = StyleReward().score([Sample(task, one, ((0, len(one)),)) for one in (BAD, text)])
    assert long.value is not None
    assert long.value <= 1 - min(1.0, sum(span.weight for span in short.spans) / 12)
    assert (short.details["code_lines"], long.details["code_lines"]) == (6, 12)
    few = dataclasses.replace(TASK, reference="x = 1\n")
    assert StyleReward().score([Sample(few, text, ((0, len(text)),))])[0].details["code_lines"] == 10
    assert StyleReward().score([sample(text)])[0].details["code_lines"] > 200  # no reference: nothing to go by


def test_a_byte_order_mark_does_not_shift_spans() -> None:
    text = "\ufeffimport os\nimport sys\n"
    result = StyleReward().score([sample(text)])[0]
    assert [text[span.start : span.end] for span in result.spans] == ["os", "sys"]


@pytest.mark.parametrize(
    ("language", "applies"), [("python", True), ("Python", True), ("py", True), ("python3", True), ("cython", False)]
)
def test_python_by_any_of_its_names(language: str, applies: bool) -> None:
    assert StyleReward().applies_to(dataclasses.replace(TASK, language=language)) is applies


@pytest.mark.parametrize("rules", [{"select": ["NOSUCH"]}, {"ignore": ["Z999999"]}])
def test_wrong_rules_end_the_run_before_it_begins(rules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"select or ignore is wrong: .*(NOSUCH|Z999999)"):
        StyleReward(**rules).setup()
    StyleReward().setup()
