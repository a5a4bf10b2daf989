"""The fresh clone's measurement, with a stand-in for make that installs and trains nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fresh_clone
from benchmarks.provenance import ROOT, commit

pytestmark = pytest.mark.skipif(
    not (shutil.which("git") and (ROOT / ".git").exists()), reason="needs git and a checkout to clone"
)

# "Installs" for 0.3 s, "trains" for 0.2 s; fails where the environment or the place is not as it should be.
STAND_IN = """#!/bin/sh
[ "$1" = quickstart ] && [ -f Makefile ] && [ -z "$SECRET" ] && [ -n "$HOME" ] || exit 3
sleep 0.3; mkdir -p .venv/bin runs/quickstart
printf '#!/bin/sh\\nexec "PYTHON" "$@"\\n' > .venv/bin/python; chmod +x .venv/bin/python
touch .venv/.installed-1; sleep 0.2
printf '{"rollouts": %s, "mean_success": {"before": 0.4}, "kl": 0.5}' ROLLOUTS > runs/quickstart/summary.json
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, rollouts: int) -> None:
    folder.mkdir()
    make = folder / "make"
    make.write_text(STAND_IN.replace("ROLLOUTS", str(rollouts)).replace("PYTHON", sys.executable))
    make.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/local/bin:/usr/bin:/bin")
    monkeypatch.setenv("SECRET", "not for the clone")


def test_the_result_is_measured_and_nothing_of_it_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", monkeypatch, 120)
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks/fresh_clone.py", "--out", str(out)])
    fresh_clone.main()
    result = json.loads(out.read_text())
    assert result["commit"] == commit()
    assert result["command"] == f"python benchmarks/fresh_clone.py --out {out}"
    assert result["machine"]["kernel"].replace(".", "").isdigit()
    assert (result["mean_success"], result["kl"], result["rollouts"]) == ({"before": 0.4}, 0.5, 120)
    seconds = result["wall_seconds"]
    assert seconds["install"] >= 0.3
    assert seconds["run"] >= 0.2
    assert seconds["total"] == pytest.approx(seconds["install"] + seconds["run"], abs=0.2)
    assert result["within_limit"] is True


def test_a_shorter_run_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", monkeypatch, 4)
    with pytest.raises(SystemExit, match=r"has 4 rollouts, configs/quickstart\.yaml asks for 120"):
        fresh_clone.measure(tmp_path / "clone", [], [])


def test_a_failed_make_is_no_result_and_only_named_variables_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "bin", monkeypatch, 120)
    with pytest.raises(SystemExit, match="ended with status 3"):
        fresh_clone.measure(tmp_path / "clone", ["SECRET"], [])
    with pytest.raises(SystemExit, match="nothing to keep: ABSENT"):
        fresh_clone.clean_environment(["ABSENT"])


def test_the_clone_is_the_commit_and_not_what_lies_in_the_checkout(tmp_path: Path) -> None:
    fresh_clone.clone(tmp_path / "clone")
    git = ["git", "-C", str(tmp_path / "clone")]
    assert subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() == commit()
    assert subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout == ""
