"""The suite: one sandbox run, failures kept apart from zeros, hidden tests kept out of the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightning_dterm.rewards import (
    CompileReward,
    EfficiencyReward,
    RewardComponent,
    RewardFailure,
    RewardSuite,
    SimilarityReward,
    StyleReward,
    TestsReward,
)
from lightning_dterm.rewards.outcome import outcome_of
from lightning_dterm.sandbox import Job, Result, Sandbox, TestOutcome
from lightning_dterm.types import CallTest, CodeTask, RewardResult, Sample, Span
from tests.rewards_common import SQUARE, TESTS, make_task, sandbox_fixture

sandbox = sandbox_fixture(slots=2)


def make_sample(code: str, **changes: Any) -> Sample:
    return Sample(make_task(**changes), code, ((0, len(code)),))


class Scripted(RewardComponent):
    """Returns what it is told to."""

    def __init__(self, name: str, answer: Any, only: str | None = None) -> None:
        self.name, self.answer, self.only = name, answer, only
        self.memory = 0

    def applies_to(self, task: CodeTask) -> bool:
        return self.only is None or task.language == self.only

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        self.memory += len(samples)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(samples) if callable(self.answer) else [RewardResult(self.answer) for _ in samples]

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state_dict(self, state: Any) -> None:
        self.memory = state["memory"]


def score_spans(spans: Any, value: float | None = 0.5) -> Any:
    """A suite's result on one sample where a component's evidence is ``spans``, beside a component in order."""
    components = [Scripted("bad", lambda samples: [RewardResult(value, spans)]), Scripted("good", 0.25)]
    sample = make_sample("summary", language="text", tests=(), success_metric="exact_match")
    with Sandbox(slots=1) as box:
        return RewardSuite(components, box).score([sample])


@pytest.mark.parametrize(
    "spans",
    [
        ((0, 3),), (Span(None, 3),), (Span(0, None),), Span(0, 3), None, "ab", (Span(1.5, 2.5),),  # type: ignore[arg-type]
        (Span(False, True),), (Span(0, 3, math.nan),), (Span(0, 3, -1.0),), (Span(0, 3, math.inf),),
        (Span(0, 3, None),), (Span(0, 3, 10**400),), (Span(0, 3), None), (Span(0, 3, "1"),),  # type: ignore[arg-type]
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0.5, None])
def test_malformed_spans_are_a_failure_of_the_component_that_made_them(
    spans: Any, value: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    result = score_spans(spans, value)
    assert math.isnan(result.scores[0, 0])
    assert result.scores[0, 1] == 0.25
    assert result.evidence == [{}]
    assert result.failures == {"bad": 1, "good": 0}
    failed = result.results[0]["bad"]
    assert failed.details["failure"] == "value"
    assert "span" in str(failed.error)
    assert "'bad'" in caplog.text


def test_spans_of_other_numbers_and_in_a_list_are_well_formed() -> None:
    numpy = pytest.importorskip("numpy")
    result = score_spans([Span(numpy.int64(1), numpy.int32(3), numpy.float32(0.5)), Span(-5, 10**30, 0)])
    assert result.failures == {"bad": 0, "good": 0}
    assert [(span.start, span.end, span.weight) for span in result.evidence[0]["bad"]] == [(1, 3, 0.5), (0, 7, 0)]


def five() -> list[RewardComponent]:
    return [CompileReward(), TestsReward(), SimilarityReward(), StyleReward(), EfficiencyReward()]


def test_the_five_of_dterm_on_a_mixed_batch(sandbox: Sandbox) -> None:
    suite = RewardSuite(five(), sandbox)
    suite.setup()
    samples = [
        make_sample(SQUARE),
        make_sample("def f(x):\n    if x < 4:\n        return x * x\n    return 0\n"),
        make_sample("def f(x:\n"),
        make_sample(""),
        make_sample("public int f() { return 1 }", language="java", tests=(), reference="public int f() { return 1; }"),
        make_sample("adds two numbers", language="text", tests=(), reference="adds two numbers",
                    success_metric="exact_match"),
    ]  # fmt: skip
    result = suite.score(samples)
    assert result.names == ("compile", "tests", "similarity", "style", "efficiency")
    scores = result.scores
    assert scores.dtype == torch.float32
    assert scores[0].tolist() == [1, 1, pytest.approx(1), 1, 1]
    assert scores[1, [0, 1, 3]].tolist() == [1, 1, 1]
    assert scores[1, 4].item() == pytest.approx((2 + 2 * 4) / (2 + 2 * 10))  # operations, see meter
    assert scores[2, [0, 1, 3, 4]].tolist() == [pytest.approx(math.exp(-1)), 0, 0, 0]
    assert scores[3].tolist() == [0] * 5
    assert scores[4, 0].item() == pytest.approx(math.exp(-1))
    applicable = ~scores.isnan()
    assert applicable[4].tolist() == [True, False, True, False, False]
    assert applicable[5].tolist() == [False, False, True, False, False]
    assert result.outcome[[0, 1, 2, 3, 5]].tolist() == [1, 0, 0, 0, 1]
    assert result.outcome[4].isnan()
    assert sum(result.failures.values()) == 0
    assert set(result.seconds) == {"execution", *result.names}
    (span,) = result.evidence[4]["compile"]
    assert 0 <= span.start < span.end <= len(samples[4].text)
    assert result.evidence[0] == {}


def test_hidden_outcomes_change_the_outcome_but_no_score(sandbox: Sandbox) -> None:
    wrong = tuple(CallTest(t.args, t.expected if t.visible else "no", t.visible) for t in TESTS)
    suite = RewardSuite(five(), sandbox)
    suite.setup()
    right, other = suite.score([make_sample(SQUARE)]), suite.score([make_sample(SQUARE, tests=wrong)])
    assert torch.equal(right.scores, other.scores)
    assert right.evidence == other.evidence
    assert (right.outcome.item(), other.outcome.item()) == (1.0, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("broken"), math.nan, math.inf, 1.5, -0.1, "high", lambda samples: [],
        lambda samples: [0.5 for _ in samples], lambda samples: [RewardResult(None, error="lost") for _ in samples],
    ],
)  # fmt: skip
def test_a_failing_component_is_masked_counted_and_leaves_the_others_alone(
    sandbox: Sandbox, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    suite = RewardSuite([Scripted("good", 0.5), Scripted("bad", answer), Scripted("late", 1.0)], sandbox)
    result = suite.score([make_sample("x = 1"), make_sample("y = 1")])
    assert result.scores[:, [0, 2]].tolist() == [[0.5, 1.0]] * 2
    assert result.scores[:, 1].isnan().all()
    assert result.failures == {"good": 0, "bad": 2, "late": 0}
    assert "'bad'" in caplog.text
    assert all(row["bad"].error for row in result.results)


def test_not_applicable_is_not_a_failure(sandbox: Sandbox) -> None:
    suite = RewardSuite([Scripted("none", None), Scripted("java", 1.0, only="java"), Scripted("all", 0.0)], sandbox)
    result = suite.score([make_sample("x = 1")])
    assert result.scores[0].isnan().tolist() == [True, True, False]
    assert suite.failures.total() == 0
    assert suite.scored["none"] == 0
    assert suite.scored["all"] == 1


def test_too_many_failures_stop_the_run(sandbox: Sandbox) -> None:
    suite = RewardSuite([Scripted("bad", ValueError("no disk"))], sandbox, max_failures=0.5, window=8)
    suite.score([make_sample("x = 1")] * 3)
    with pytest.raises(RewardFailure, match=r"'bad' failed on 4 of its last 4 .* no disk"):
        suite.score([make_sample("x = 1")])


class BrokenSandbox:
    """Judges nothing: every verdict is ``infra``."""

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        return [
            Result("infra", tuple(TestOutcome(False, "infra", t.visible) for t in job.tests), exception="worker lost")
            for job in jobs
        ]


def test_our_own_accidents_are_masked_never_zero() -> None:
    suite = RewardSuite(five(), BrokenSandbox(), max_failures=1.0)  # type: ignore[arg-type]
    result = suite.score([make_sample(SQUARE)])
    assert result.scores[0].isnan().tolist() == [True, True, False, False, True]
    assert result.outcome.isnan().all()
    assert result.failures["tests"] == 1
    assert "worker lost" in str(result.results[0]["tests"].error)


def test_equal_programs_run_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run_many = sandbox.run_many
    monkeypatch.setattr(sandbox, "run_many", lambda jobs, **how: seen.append(len(jobs)) or run_many(jobs, **how))
    result = RewardSuite([TestsReward()], sandbox).score(
        [make_sample(SQUARE), make_sample(SQUARE), make_sample("f = abs")]
    )
    assert seen == [2]
    assert result.scores.flatten().tolist() == [1, 1, 0]


def test_evidence_is_mapped_from_the_program_to_the_text(sandbox: Sandbox) -> None:
    text = "Here:\n```python\nabc\n```\n"
    start = text.index("abc")
    sample = Sample(make_task(prefix="12", tests=(), success_metric="exact_match"), text, ((start, start + 3),))
    spans = (Span(0, 4, 2.0), Span(0, 1))
    component = Scripted("c", lambda samples: [RewardResult(0.5, spans) for _ in samples])
    result = RewardSuite([component], sandbox).score([sample])
    assert result.evidence == [{"c": [Span(start, start + 2, 2.0)]}]


def test_outcome_by_exact_match_folds_white_space() -> None:
    task = {"success_metric": "exact_match", "reference": "a  b\n", "metadata": {"accepted": ("c d",)}}
    assert [outcome_of(make_sample(code, **task)) for code in ("a b ", "c\td", "ab", " a b", "")] == [
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
    ]
    assert math.isnan(outcome_of(make_sample("x")))


def test_execution_happens_for_the_outcome_alone(sandbox: Sandbox) -> None:
    result = RewardSuite([SimilarityReward()], sandbox).score([make_sample(SQUARE)])
    assert result.outcome.item() == 1.0


def test_state_survives_a_round_trip(sandbox: Sandbox) -> None:
    def build() -> RewardSuite:
        return RewardSuite([Scripted("good", 1.0), Scripted("bad", ValueError())], sandbox, 1.0)

    first, second = build(), build()
    first.score([make_sample("x = 1")] * 3)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second.failures["bad"] == second.scored["good"] == 3
    assert second.components[0].memory == 3  # type: ignore[attr-defined]


def test_bad_suites_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="at least one"):
        RewardSuite([], sandbox)
    with pytest.raises(ValueError, match=r"distinct.*twice"):
        RewardSuite([Scripted("twice", 1), Scripted("twice", 0)], sandbox)
    with pytest.raises(ValueError, match="max_failures"):
        RewardSuite(five(), sandbox, max_failures=2)
