"""docs/dterm.md: its commands run, its YAML is read, and what it says of defaults and tags is so."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lightning_dterm.callbacks import RewardComputation
from lightning_dterm.dterm import HypernetworkWeighting, OutcomeRanking, Weighting
from lightning_dterm.dterm.explain import main
from tests.test_dterm_explain import train

PAGE = (Path(__file__).parents[1] / "docs" / "dterm.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    train(tmp_path, HypernetworkWeighting(film="monotone", prototypes=4))
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for block in blocks("console") for line in block.splitlines()]
    assert [words[:3] for words in commands] == [["python", "-m", "lightning_dterm.dterm.explain"]] * 2
    for words in commands:
        main(words[3:])
    out = capsys.readouterr().out
    assert out.count("nearest training tasks") == 2
    assert (tmp_path / "why.svg").read_text().startswith("<svg")


def test_the_yaml_fits_itself() -> None:
    (block,) = blocks("yaml")
    overlay = yaml.safe_load(block)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=RewardComputation)
    parser.add_argument("--weighting", type=Weighting)
    (callback,) = overlay["trainer"]["callbacks+"]
    weighting = overlay["model"]["init_args"]["weighting"]
    made = parser.instantiate(parser.parse_object({"callback": callback, "weighting": weighting}))
    made.weighting.configure(made.callback.component_names, 8)
    prior = made.weighting.hypernetwork.prior.tolist()
    assert dict(zip(made.callback.component_names, prior, strict=True)) == pytest.approx(
        {"compile": 0.2, "tests": 0.6, "dfg_match": 0.2}
    )


def test_the_defaults_are_those_of_the_code() -> None:
    defaults = {
        name: parameter.default
        for kind in (HypernetworkWeighting, OutcomeRanking)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
    }
    assert (defaults["prototypes"], defaults["prototype_dim"], defaults["hidden"]) == (8, 64, 256)
    assert (defaults["eps"], defaults["film"], defaults["normalize"]) == (0.02, "monotone", False)
    assert (defaults["kl_weight"], defaults["fifo"], defaults["min_pairs"], defaults["ema"]) == (0.05, 64, 20.0, 0.9)
    assert (defaults["beta"], defaults["beta_min"], defaults["beta_max"]) == (2.0, 0.5, 10.0)
