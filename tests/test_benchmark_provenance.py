"""What benchmark results say about how they were made can be typed again."""

from __future__ import annotations

import shlex
import sys

import pytest

from benchmarks import codexglue
from benchmarks.provenance import provenance


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
