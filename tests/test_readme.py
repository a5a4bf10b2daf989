"""README.md: its example of rewards of one's own runs as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from lightning_dterm.callbacks import RewardComputation
from lightning_dterm.cli import main
from tests.test_rewards_functions import make

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
IS_SHORT = """
def is_short(prompts, completions, **columns):
    assert len(prompts) == len(completions) == len(columns["reference"])
    return [None if not text else float(len(text) < 5) for text in completions]
"""


def test_a_function_beside_the_run_is_found_and_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "my_package" in block]
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "rewards.py").write_text(IS_SHORT)
    (tmp_path / "rewards.yaml").write_text(example)
    run = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 1, "logger": False},
        "model": {"class_path": "tests.cli_stand_in.StandInModule"},
        "data": {"class_path": "tests.cli_stand_in.StandInData"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as the installed command starts
    monkeypatch.setenv("LIGHTNING_DTERM_DEBUG", "1")
    seen: list[RewardComputation] = []
    monkeypatch.setattr(RewardComputation, "setup", lambda self, *_, **__: seen.append(self))
    main(["fit", "-c", "run.yaml", "-c", "rewards.yaml"])
    (callback,) = seen
    assert callback.component_names == ("tests", "is_short")
    values = [result.value for result in callback.suite.components[1].score([make("abc"), make("abcdef"), make("")])]
    assert values == [1.0, 0.0, None]
    sys.modules.pop("my_package.rewards")
    sys.modules.pop("my_package")
