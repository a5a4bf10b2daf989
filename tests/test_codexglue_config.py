"""The packaged PPO configuration for CodeXGLUE runs as it is."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch

from lightning_dterm.cli import main
from tests.test_data_modules import codexglue_folder
from tests.tiny import tiny_actor


def test_two_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_actor(tmp_path / "actor")
    (tmp_path / "pairs").mkdir()
    given = ["-c", "configs/base.yaml", "-c", "configs/codexglue/ppo.yaml", "--data.init_args.data_dir"]
    small = {
        "trainer.max_steps": 2,
        "model.init_args.actor.path": "actor",
        "model.init_args.generation.max_prompt_length": 64,
        "model.init_args.generation.max_new_tokens": 8,
        "data.init_args.batch_size": 2,
    }
    options = [f"--{name}={value}" for name, value in small.items()]
    main(["fit", *given, str(codexglue_folder(tmp_path / "pairs")), *options])
    (summary,) = tmp_path.glob("runs/codexglue_ppo/summary.json")
    assert json.loads(summary.read_text())["rollouts"] == 2
    checkpoint = torch.load(tmp_path / "runs/codexglue_ppo/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["lightning_dterm"]["component_names"] == ["compile", "similarity", "ast_match"]
