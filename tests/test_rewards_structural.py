"""AstMatchReward and DfgMatchReward: values by hand, evidence, edge cases, caches, the overlay."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from lightning_dterm.rewards import AstMatchReward, DfgMatchReward, RewardComponent, RewardSuite
from lightning_dterm.sandbox import Sandbox
from lightning_dterm.structure import ParseLimits, SyntaxTree, TreeParser
from lightning_dterm.types import RewardResult, Sample
from tests.rewards_common import make_task

REFERENCE = "def f(x):\n    y = x * x\n    return y\n"
BOTH = [AstMatchReward, DfgMatchReward]
Kind = type[AstMatchReward] | type[DfgMatchReward]


def sample(code: str, text: str | None = None, **task: Any) -> Sample:
    whole = code if text is None else text
    start = whole.index(code)
    spans = ((start, start + len(code)),) if code else ()
    return Sample(make_task(**{"reference": REFERENCE, **task}), whole, spans)


def score(component: RewardComponent, *samples: Sample) -> list[RewardResult]:
    return component.score(list(samples))


@pytest.mark.parametrize("kind", BOTH)
def test_the_reference_scores_one_and_nothing_scores_zero(kind: Kind) -> None:
    same, empty, junk = score(kind(), sample(REFERENCE), sample("", ""), sample(")))(("))
    assert (same.value, same.spans) == (1.0, ())
    assert empty.value == 0
    assert junk.value == 0


@pytest.mark.parametrize("kind", BOTH)
def test_junk_after_the_reference_does_not_pay(kind: Kind) -> None:
    junk = sample(REFERENCE + "".join(f"z{n} = [{n}]\n" for n in range(40)))
    (f1,), (recall,) = score(kind(), junk), score(kind(measure="recall"), junk)
    assert recall.value is not None
    assert f1.value is not None
    assert recall.value > 0.8
    assert f1.value < 0.2
    assert len(f1.spans) >= 40
    assert f1.details["recall"] == recall.value


def test_values_by_hand() -> None:
    shorter = sample("def f(x):\n    return x\n")
    # Subtrees (nodes with children): parameters and return_statement of 13 below; module, function, block differ.
    (ast,) = score(AstMatchReward(), shorter)
    assert (ast.details["matched"], ast.details["reference"], ast.details["candidate"]) == (2, 8, 5)
    assert ast.value == pytest.approx(4 / 13)
    # x, x<x against x, y<x, x<x, x<x, y<y.
    (dfg,) = score(DfgMatchReward(), shorter)
    assert (dfg.details["matched"], dfg.details["reference"], dfg.details["candidate"]) == (2, 5, 2)
    assert dfg.value == pytest.approx(4 / 7)


def test_renaming_is_free_for_data_flow() -> None:
    renamed = REFERENCE.replace("x", "größe").replace("y", "z")
    for result in (*score(AstMatchReward(), sample(renamed)), *score(DfgMatchReward(), sample(renamed))):
        assert result.value == 1


@pytest.mark.parametrize("kind", BOTH)
def test_evidence_points_into_the_completion(kind: Kind) -> None:
    code = "def f(x):\n    ü = x * x\n    return x - ü\n"
    one = sample(code, text=f"Sure:\n```python\n{code}```\n")
    (result,) = score(kind(), one)
    places = [one.program[span.start : span.end] for span in result.spans]
    assert places
    assert all(place in ("x - ü", "x", "ü") for place in places)
    mapped = one.spans_in_text(result.spans)
    assert [one.text[span.start : span.end] for span in mapped] == places


@pytest.mark.parametrize("kind", BOTH)
def test_completion_tasks_are_compared_with_their_prefix(kind: Kind) -> None:
    task = {"prefix": "def f(x):\n    y = ", "reference": "x * x\n    return y\n"}
    right, wrong = score(kind(), sample("x * x\n    return y\n", **task), sample("g(2)\n    return x\n", **task))
    assert right.value == 1
    assert wrong.value is not None
    assert wrong.value < 1
    assert all(span.start >= 0 for span in wrong.spans)


def test_a_reference_without_data_flow_makes_it_not_applicable() -> None:
    (dfg,), (ast,) = (score(kind(), sample("pass", reference="pass")) for kind in (DfgMatchReward, AstMatchReward))
    assert (dfg.value, dfg.error) == (None, None)
    assert ast.value == 1
    assert score(DfgMatchReward(), sample("pass"))[0].value == 0


@pytest.mark.parametrize("kind", BOTH)
def test_where_it_applies(kind: Kind) -> None:
    component = kind()
    for language in ("python", "java", "c", "c++", "c#", "javascript", "go", "php"):
        assert component.applies_to(make_task(language=language))
    assert not component.applies_to(make_task(language="text"))
    assert not component.applies_to(make_task(reference="  \n"))


@pytest.mark.parametrize("kind", BOTH)
def test_programs_beyond_the_limits_score_zero_and_references_beyond_them_are_failures(kind: Kind) -> None:
    parser = TreeParser(ParseLimits(max_bytes=1_000))
    component = kind(parser=parser)
    program, reference, fine = score(
        component, sample("x = 1\n" * 500), sample("x = 1", reference="x = 1\n" * 500), sample(REFERENCE)
    )
    assert (program.value, program.details["status"]) == (0.0, "unparseable")
    assert reference.value is None
    assert "reference cannot be parsed" in str(reference.error)
    assert fine.value == 1
    parser.close()


@pytest.mark.parametrize("kind", BOTH)
def test_references_are_built_once_and_the_least_used_forgotten(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    component = kind(cache_size=2)
    built: list[str] = []
    original = component.build

    def build(tree: SyntaxTree) -> object:
        built.append(tree.text)
        return original(tree)

    monkeypatch.setattr(component, "build", build)
    a, b, c = (sample(REFERENCE, reference=REFERENCE + f"z = {name}\n") for name in "abc")
    score(component, a, a, b)
    score(component, a, b)
    assert len(built) == 2
    score(component, c)  # forgets a
    score(component, b, c)
    assert len(built) == 3
    score(component, a)
    assert len(built) == 4


@pytest.mark.parametrize("kind", BOTH)
def test_bad_settings_are_named_and_components_pickle(kind: Kind) -> None:
    with pytest.raises(ValueError, match="measure must be one of f1, precision, recall, got 'bleu'"):
        kind(measure="bleu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cache_size"):
        kind(cache_size=0)
    copy = pickle.loads(pickle.dumps(kind()))
    assert score(copy, sample(REFERENCE))[0].value == 1


def test_in_a_suite_with_evidence_and_values() -> None:
    with Sandbox(slots=1) as sandbox:
        suite = RewardSuite([AstMatchReward(), DfgMatchReward()], sandbox)
        task: dict[str, Any] = {"tests": (), "success_metric": "exact_match"}
        result = suite.score([sample(REFERENCE, **task), sample("def f(x):\n    return 1\n", **task)])
    assert result.scores[0].tolist() == [1.0, 1.0]
    assert (result.scores[1] < 1).all()
    assert result.failures == {"ast_match": 0, "dfg_match": 0}
    assert result.evidence[0] == {}
    assert "ast_match" in result.evidence[1]


def test_the_overlay_turns_both_on() -> None:
    overlay = yaml.safe_load((Path(__file__).parents[1] / "configs/rewards/structural.yaml").read_text())
    (rewards,) = overlay["trainer"]["callbacks+"]
    components = rewards["init_args"]["components"]
    made = {c["class_path"].rpartition(".")[2]: c.get("init_args", {}) for c in components}
    assert AstMatchReward(**made["AstMatchReward"]).measure == "f1"
    assert DfgMatchReward(**made["DfgMatchReward"]).measure == "f1"
