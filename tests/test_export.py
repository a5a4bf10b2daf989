"""What an exported adapter says of its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_dterm.modules.actor_critic import CriticConfig, LoraSettings
from lightning_dterm.modules.loading import ActorConfig, resolve_path
from lightning_dterm.modules.ppo import PPOModule
from tests.tiny import ScoreOf, share_of_a, tiny_actor, tiny_trainer


def test_an_adapter_names_its_base_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = tiny_actor(tmp_path / "actor")
    monkeypatch.chdir(tmp_path)
    for path, expected in ((actor.name, actor), ("package:quickstart", Path(resolve_path("package:quickstart")))):
        module = PPOModule(actor=ActorConfig(path=path), critic=CriticConfig("shared"), lora=LoraSettings(rank=2))
        module.trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1)
        module.configure_model()
        folder = module.export(tmp_path / path.replace(":", "_"), merge=False)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(expected.resolve())
