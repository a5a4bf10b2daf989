"""docs/rewards.md: its code runs as it stands, its YAML is read by the command line's parser."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.rewards import FunctionReward, RewardSuite
from lightning_dterm.types import CodeTask, Sample
from tests.test_rewards_functions import NoSandbox

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """``my_package.rewards``: every block of Python on the page, and the function its YAML names besides."""
    module = types.ModuleType("my_package.rewards")
    for block in blocks("python"):
        exec(compile(block, "docs/rewards.md", "exec"), module.__dict__)
    for value in vars(module).values():  # as if the file had been imported
        if getattr(value, "__module__", None) == "builtins" and isinstance(value, type):
            value.__module__ = "my_package.rewards"
    exec("def in_the_unit_interval(completions):\n    return [0.5 for _ in completions]\n", module.__dict__)
    package = types.ModuleType("my_package")
    package.rewards = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", package)
    monkeypatch.setitem(sys.modules, "my_package.rewards", module)
    return module


def make(text: str, **fields: Any) -> Sample:
    task = CodeTask("t", "synthesis", "python", "p", "d", "x = 1", **fields)
    return Sample(task, text, ((0, len(text)),))


def test_the_class_takes_fifteen_lines_and_blames_the_right_characters(rewards: types.ModuleType) -> None:
    assert len(blocks("python")[0].splitlines()) <= 15
    samples = [make("x = 1"), make("print(1)\nprint (2)", prefix="print(0)\n")]
    result = RewardSuite([rewards.NoPrint()], NoSandbox()).score(samples)  # type: ignore[arg-type]
    assert result.failures == {"no_print": 0}
    assert result.scores.flatten().tolist() == [1.0, 0.25]
    assert [samples[1].text[span.start : span.end] for span in result.evidence[1]["no_print"]] == ["print(", "print ("]


def test_the_functions_do_what_is_said(rewards: types.ModuleType) -> None:
    parts = [FunctionReward(rewards.reads_the_reference, low=-1), FunctionReward(rewards.judged_elsewhere)]
    result = RewardSuite(parts, NoSandbox()).score([make("x = 1"), make("y" * 50)])  # type: ignore[arg-type]
    assert result.scores.tolist() == [[1.0, pytest.approx(0.05)], [0.0, 0.5]]
    assert result.metrics["judged_elsewhere/mean"] == pytest.approx(0.275)


def test_the_yaml_is_read(rewards: types.ModuleType) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=RolloutCallback)
    names = []
    for block in blocks("yaml"):
        arguments = yaml.safe_load(block)
        config = {"callback": {"class_path": "lightning_dterm.callbacks.RewardComputation", "init_args": arguments}}
        made = parser.instantiate(parser.parse_object(config)).callback
        names.append(made.component_names)
        low = [getattr(component, "low", None) for component in made.suite.components]
        assert low == [
            {"reads_the_reference": -1, "in_the_unit_interval": 0}.get(name) for name in made.component_names
        ]
    assert names == [("tests", "no_print"), ("in_the_unit_interval", "reads_the_reference"), ("reads_the_reference",)]
    assert made.suite.components[0].overlaps
