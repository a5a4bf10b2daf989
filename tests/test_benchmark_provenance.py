"""What benchmark results say about how they were made can be typed again."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import attribution, codexglue, meta_step
from benchmarks.provenance import ROOT, provenance


def test_the_recorded_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "benchmarks/x.py",
        "--data_dir",
        "/home/me/my data",
        "--trainer.logger",
        "{save_dir: a b}",
        "--note",
        "$(x)",
    ]
    monkeypatch.setattr(sys, "argv", given)
    command = provenance("abc")["command"]
    assert shlex.split(command) == ["python", *given[:2], "DIR", *given[3:]]


def test_the_documented_command_is_accepted() -> None:
    (line,) = [line for line in str(codexglue.__doc__).splitlines() if "python benchmarks/codexglue.py" in line]
    args = codexglue.parser().parse_args(shlex.split(line)[2:])
    assert (args.data_dir, args.trained_at) == ("$DIR", "$COMMIT")


@pytest.mark.parametrize("benchmark", [attribution, meta_step])
def test_the_documented_command_is_complete(benchmark: Any) -> None:
    (line,) = [line for line in str(benchmark.__doc__).splitlines() if "python benchmarks/" in line]
    parser = benchmark.arguments()
    assert vars(parser.parse_args(shlex.split(line)[2:])) == vars(parser.parse_args([]))


def test_the_attribution_share_by_hand() -> None:
    phases = {name: [1.0, 1.0] for name in ("rollout", "weighting", "advantage", "update")}
    seconds = {**phases, "iteration": [10.0, 30.0], "reward": [2.0, 6.0], "attribution": [0.1, 0.3]}
    found = attribution.shares({**seconds, "reward_style": [0.2, 0.2], "reward_tests": [9.0, 9.0]})
    assert (found["rollouts"], found["seconds_per_iteration"]) == (2, 20.0)
    assert (found["offsets_and_token_rewards"], found["upper_bound"]) == (0.01, 0.02)
    assert (found["phase_share"]["reward"], found["phase_share"]["update"]) == (0.2, 0.05)


def recorded(value: Any) -> Iterator[str]:
    """Every ``command`` in a result, however deep."""
    if isinstance(value, dict):
        if "command" in value:
            yield value["command"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from recorded(part)


COMMANDS = [
    pytest.param(command, id=path.stem)
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    for command in recorded(json.loads(path.read_text(encoding="utf-8")))
]


def test_commands_are_found_wherever_they_stand() -> None:
    assert list(recorded([{"runs": [{"command": "a"}]}, {"command": "b", "more": {"command": "c"}}])) == ["a", "b", "c"]
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_committed_command_is_one_that_a_shell_reads(command: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
