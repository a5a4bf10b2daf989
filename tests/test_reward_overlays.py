"""Of several RewardComputation callbacks, as overlays append them, the last one acts and the others never begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from lightning_dterm.callbacks import RewardComputation, SampleTableLogger, TokenAttribution
from lightning_dterm.cli import DTermTrainer, main
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor


class NeverBegun(RewardComputation):
    """Whatever is asked of it, even to be there for a checkpoint, is a mistake."""

    def setup(self, *_: Any) -> None:
        pytest.fail("an overridden reward callback was set up")

    def teardown(self, *_: Any) -> None:
        pytest.fail("an overridden reward callback was torn down")

    def on_generation_end(self, *_: Any) -> None:
        pytest.fail("an overridden reward callback was asked for rewards")

    on_rollout_end = on_generation_end

    def state_dict(self) -> dict[str, Any]:
        pytest.fail("an overridden reward callback was asked for its state")


class Names(RolloutCallback):
    def __init__(self) -> None:
        self.seen: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        assert rollout.scores is not None
        self.seen.append((rollout.component_names, tuple(rollout.scores.shape)))


def rewards(*names: str) -> RewardComputation:
    return RewardComputation([ScoreOf(name, share_of_a) for name in names])


def fit(
    folder: Path, callbacks: Sequence[L.Callback], steps: int, resume: Path | None = None
) -> tuple[DTermTrainer, Names]:
    names = Names()
    trainer = DTermTrainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[*callbacks, names],
    )
    module = PPOModule(
        actor=ActorConfig(path=str(folder / "actor")),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_prompt_length=8, max_new_tokens=2, samples_per_prompt=1),
        ppo=PPOConfig(epochs=1, minibatches=1),
    )
    trainer.fit(module, datamodule=TextData(batch_size=4, size=16), ckpt_path=resume)
    return trainer, names


def test_the_last_one_acts_in_the_first_ones_place() -> None:
    first, second, last = rewards("a"), NeverBegun([ScoreOf("a", share_of_a)]), rewards("b", "c")
    attribution, table = TokenAttribution(), SampleTableLogger()
    given = [table, first, attribution, second, last]
    trainer = DTermTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=given)
    assert [c for c in trainer.callbacks if c in given] == [table, last, attribution]
    assert given == [table, first, attribution, second, last]  # the caller's list is the caller's


def test_the_others_never_begin_and_leave_no_state(tmp_path: Path) -> None:
    tiny_actor(tmp_path / "actor")
    overridden = NeverBegun([ScoreOf("a", share_of_a)])
    trainer, names = fit(tmp_path, [overridden, TokenAttribution(), rewards("b", "c")], 1)
    assert names.seen == [(("b", "c"), (4, 2))]
    trainer.save_checkpoint(tmp_path / "overlaid.ckpt")
    state = torch.load(tmp_path / "overlaid.ckpt", weights_only=True)
    assert state["lightning_dterm"]["component_names"] == ["b", "c"]
    kept = {key: value for key, value in state["callbacks"].items() if "Reward" in key or "Never" in key}
    assert list(kept) == ["RewardComputation"]
    assert kept["RewardComputation"]["ranks"][0]["scored"] == {"b": 4, "c": 4}
    # the same run without the overlay's detour goes on from there, and the other way round
    trainer, _ = fit(tmp_path, [rewards("b", "c"), TokenAttribution()], 2, tmp_path / "overlaid.ckpt")
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    acting = rewards("b", "c")
    fit(tmp_path, [overridden, TokenAttribution(), acting], 3, tmp_path / "plain.ckpt")
    assert acting.suite.scored == {"b": 12, "c": 12}


def test_the_packaged_overlay_replaces_the_rewards_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "-c", "configs/quickstart.yaml", "-c", "configs/rewards/structural.yaml", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    classes = [callback["class_path"].rpartition(".")[2] for callback in printed]
    assert [classes[0], classes[-1]] == ["RewardComputation"] * 2
    assert {"BeforeAfterReport", "ModelCheckpoint", "SampleTableLogger"} <= set(classes)
    components = [one["class_path"].rpartition(".")[2] for one in printed[-1]["init_args"]["components"]]
    assert components == ["CompileReward", "AstMatchReward", "DfgMatchReward"]
