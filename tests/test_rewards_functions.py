"""Functions as TRL takes them: their arguments, their values, asynchronous ones, and every way to break."""

from __future__ import annotations

import asyncio
import functools
import math
import re
import time
from typing import Any

import pytest
import torch

from lightning_dterm.rewards import FunctionReward, Progress, RewardSuite
from lightning_dterm.rewards.function_async import EventLoop
from lightning_dterm.types import CodeTask, Sample


class NoSandbox:
    """Nothing here is executed."""

    def run_many(self, jobs: Any) -> list[Any]:
        assert not jobs
        return []


def make(text: str, ids: tuple[int, ...] = (), **metadata: Any) -> Sample:
    task = CodeTask("t", "synthesis", "text", "The prompt", "d", "42", metadata=metadata)
    return Sample(task, text, ((0, len(text)),), token_ids=ids)


def suite_of(*functions: Any, **options: Any) -> RewardSuite:
    parts = [one if isinstance(one, FunctionReward) else FunctionReward(one) for one in functions]
    return RewardSuite(parts, NoSandbox(), **options)  # type: ignore[arg-type]


# --- the shapes that TRL documents -----------------------------------------------------------------------------------


def by_tokens(completion_ids, **kwargs):  # type: ignore[no-untyped-def]
    return [len(ids) for ids in completion_ids]


def by_format(completions, **kwargs):  # type: ignore[no-untyped-def]
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.fullmatch(r"<a>.*</a>", content) else 0.0 for content in contents]


def by_answer(completions, answer, log_extra=None, log_metric=None, **kwargs):  # type: ignore[no-untyped-def]
    found = [re.search(r"=(\d+)", text) for text in completions]
    numbers = [match.group(1) if match else "none" for match in found]
    scores = [1.0 if number == right else -1.0 for number, right in zip(numbers, answer, strict=True)]
    log_extra("number", numbers)
    log_metric("right", sum(score > 0 for score in scores) / len(scores))
    return scores


def only_math(prompts, completions, kind, **kwargs):  # type: ignore[no-untyped-def]
    return [0.5 if one == "math" else None for one in kind]


def curriculum(completions, trainer_state, **kwargs):  # type: ignore[no-untyped-def]
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)


async def elsewhere(prompts, completions, **kwargs):  # type: ignore[no-untyped-def]
    await asyncio.sleep(0.001)
    return [float(bool(text)) for text in completions]


def test_trl_style_functions_work_unchanged() -> None:
    samples = [make("<a>=42</a>", (5, 6, 7), answer="42", kind="math"), make("=41", (5,), answer="42", kind="code")]
    suite = suite_of(
        FunctionReward(by_tokens, high=4),
        FunctionReward(by_format, conversational=True),
        FunctionReward(by_answer, low=-1),
        only_math, curriculum, elsewhere,
    )  # fmt: skip
    result = suite.score(samples, Progress(step=3, max_steps=12))
    nan = math.nan
    wanted = [[0.75, 1.0, 1.0, 0.5, 0.25, 1.0], [0.25, 0.0, 0.0, nan, 0.25, 1.0]]
    assert torch.equal(result.scores.nan_to_num(-1), torch.tensor(wanted).nan_to_num(-1))
    assert result.failures == dict.fromkeys(result.names, 0)
    assert result.metrics == {"by_answer/right": 0.5}
    assert result.columns == {"by_answer/number": ["42", "41"]}
    assert min(result.seconds.values()) >= 0


def test_conversations_are_the_tasks_own_where_it_has_them() -> None:
    seen: list[Any] = []

    def look(prompts: Any, completions: Any) -> list[float]:
        seen.extend([prompts, completions])
        return [1.0, 1.0]

    own = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    FunctionReward(look, conversational=True).score([make("x"), make("y", messages=own)])
    assert seen[0] == [[{"role": "user", "content": "The prompt"}], own]
    assert seen[1] == [[{"role": "assistant", "content": text}] for text in "xy"]


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (0.25, {}, 0.25), (True, {}, 1.0), (-1, {"low": -1}, 0.0), (torch.tensor(0.5), {}, 0.5), (None, {}, None),
        (3, {"high": 2, "clip": True}, 1.0), (-math.inf, {"clip": True}, 0.0),
    ],
)  # fmt: skip
def test_values_are_mapped_linearly(value: Any, options: Any, expected: float | None) -> None:
    (result,) = FunctionReward(lambda completions: [value], "f", **options).score([make("x")])
    assert (result.value, result.error) == (expected, None)


@pytest.mark.parametrize("value", [1.01, -0.01, math.nan, math.inf, "0.5", [0.5]])
def test_one_bad_value_fails_its_own_sample_only(value: Any) -> None:
    result = suite_of(FunctionReward(lambda completions: [0.5, value], "odd")).score([make("x"), make("y")])
    assert result.scores[0].tolist() == [0.5]
    assert result.scores[1].isnan().all()
    assert result.failures == {"odd": 1}
    assert (FunctionReward(lambda completions: [math.nan], "f", clip=True).score([make("x")])[0].error) is not None


@pytest.mark.parametrize(
    ("function", "kind", "said"),
    [
        (lambda completions: 1 / 0, "exception", "ZeroDivisionError"),
        (lambda completions: exit(3), "exception", "SystemExit: 3"),
        (lambda completions: None, "exception", "NoneType instead of a list"),
        (lambda completions: {"a": 1}, "exception", "dict instead of a list"),
        (lambda completions: [1.0], "exception", "1 values for 2 completions"),
        (lambda completions, ground_truth: [1.0] * 2, "exception", "needs ground_truth, which these tasks have not"),
        (lambda completions, log_extra: log_extra("c", [1]), "exception", "1 values for 2 completions"),
    ],
)
def test_failures_are_typed_counted_and_name_the_culprit(
    function: Any, kind: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    suite = suite_of(FunctionReward(function, "culprit"), FunctionReward(lambda completions: [1.0] * 2, "good"))
    result = suite.score([make("x"), make("y")])
    assert result.scores.isnan().tolist() == [[True, False]] * 2
    assert result.failure_kinds == {"culprit": {kind: 2}}
    assert said in str(result.results[0]["culprit"].error)
    assert "'culprit' failed on 2 of 2 samples" in caplog.text
    state = suite.state_dict()
    again = suite_of(FunctionReward(function, "culprit"), FunctionReward(lambda completions: [1.0] * 2, "good"))
    again.load_state_dict(state)
    assert again.kinds["culprit"] == {kind: 2}


def test_asynchronous_functions_wait_beside_each_other_and_keep_their_loop() -> None:
    loops = []

    async def slow(completions: list[str]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0.4)
        return [1.0]

    parts = [FunctionReward(slow, f"slow{i}") for i in range(4)]
    parts.append(FunctionReward(functools.partial(slow), "partial"))
    assert all(part.overlaps for part in parts)
    suite = suite_of(*parts)
    pending = suite.start([make("x")])
    time.sleep(0.1)
    result = pending.result()
    assert result.scores.tolist() == [[1.0] * 5]
    assert all(result.seconds[part.name] >= 0.4 for part in parts)
    assert result.busy < 1.6  # 2 s one after the other
    suite.score([make("x")])
    assert len(set(map(id, loops))) == 1


def test_an_asynchronous_function_that_hangs_is_cancelled_and_used_again() -> None:
    ended = []

    async def hangs(completions: list[str]) -> list[float]:
        if completions == ["fine"]:
            return [1.0]
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(True)
        return []

    suite = suite_of(FunctionReward(hangs, timeout_s=0.2))
    assert suite.score([make("x")]).failure_kinds == {"hangs": {"timeout": 1}}
    assert suite._runners["hangs"].idle(5.0)
    assert ended == [True]
    assert suite.score([make("fine")]).scores.item() == 1.0


def test_one_that_holds_the_loop_up_is_blamed_and_the_others_get_a_new_one() -> None:
    async def holds(completions: list[str]) -> list[float]:
        async def part() -> None:
            time.sleep(6.0)

        await asyncio.gather(part())
        return [1.0]

    async def waits(completions: list[str]) -> list[float]:
        await asyncio.sleep(0.01)
        return [1.0]

    before = EventLoop.shared()
    suite = suite_of(FunctionReward(holds, timeout_s=0.5), FunctionReward(waits, timeout_s=60.0))
    first = suite.score([make("x")])
    assert first.failure_kinds["holds"] == {"timeout": 1}
    error = first.results[0]["waits"].error
    assert error is None or "held up by 'holds'" in error  # it may have come first
    assert EventLoop.shared() is not before
    second = suite.score([make("x")])
    assert second.failure_kinds == {"holds": {"hung": 1}}
    assert second.scores[0, 1] == 1.0


def test_bad_arguments_are_refused() -> None:
    for options in ({"low": 1, "high": 1}, {"high": math.inf}, {"timeout_s": 0}):
        with pytest.raises(ValueError, match="FunctionReward"):
            FunctionReward("math.fsum", **options)
    with pytest.raises(ValueError, match="timeout_s must be positive"):
        suite_of("math.fsum", timeout_s=-1)
