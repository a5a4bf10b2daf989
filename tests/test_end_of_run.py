"""What a run that ends leaves behind: its last step in ``last.ckpt``, before anything else is done at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_dterm.callbacks.report import BeforeAfterReport
from lightning_dterm.callbacks.stop import GracefulStop
from lightning_dterm.modules.config import GenerationConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.supervised import SupervisedModule
from tests.cli_stand_in import StandInData, StandInModule, events
from tests.test_callbacks_stop import fit, trainer_in
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_fit, tiny_ppo


def keeper_in(folder: Path, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, save_last=True, **{"every_n_train_steps": 2, **settings})


def saved_step(folder: Path) -> int:
    return int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])


STEPS, EPOCHS = {"every_n_train_steps": 5}, {"every_n_train_steps": 0, "every_n_epochs": 1}


# in the first epoch of 8 steps, with it, in the second
@pytest.mark.parametrize(("end", "every"), [(3, STEPS), (8, STEPS), (11, STEPS), (3, EPOCHS), (11, EPOCHS)])
def test_the_last_step_is_saved_and_resumes_exactly(tmp_path: Path, end: int, every: dict[str, int]) -> None:
    whole = fit(trainer_in(tmp_path / "whole", max_steps=13), tmp_path / "whole")
    fit(trainer_in(tmp_path, keeper_in(tmp_path / "c", **every), max_steps=end), tmp_path / "parts")
    assert saved_step(tmp_path / "c") == end

    last = str(tmp_path / "c" / "last.ckpt")
    resumed = trainer_in(tmp_path, keeper_in(tmp_path / "c", **every), max_steps=13)
    parts = fit(resumed, tmp_path / "parts", ckpt_path=last)
    assert saved_step(tmp_path / "c") == 13
    assert [p.name for p in (tmp_path / "c").glob("last*")] == ["last.ckpt"]
    assert parts.layer is not None
    assert whole.layer is not None
    assert torch.equal(parts.layer.weight, whole.layer.weight)
    batches = [[e["batch"] for e in events(tmp_path / n) if e["event"] == "train"] for n in ("parts", "whole")]
    assert batches[0] == batches[1] == [float(i % 8) for i in range(13)]


def test_the_end_by_epochs_is_saved_too(tmp_path: Path) -> None:
    fit(trainer_in(tmp_path, keeper_in(tmp_path / "c", every_n_train_steps=5), max_epochs=2), tmp_path / "t")
    assert saved_step(tmp_path / "c") == 16


def test_what_others_keep_is_not_changed_by_it(tmp_path: Path) -> None:
    """A checkpoint that waits for the validation after the last step is still written."""
    best = ModelCheckpoint(
        dirpath=tmp_path / "c", filename="{step}", monitor="v", every_n_train_steps=3, save_last=True
    )

    class Measured(StandInModule):
        def on_validation_epoch_end(self) -> None:
            self.log("v", 1.0)

    trainer = trainer_in(tmp_path, best, max_steps=3, val_check_interval=3)
    trainer.fit(Measured(), datamodule=StandInData())
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["last.ckpt", "step=3.ckpt"]


def test_no_last_checkpoint_where_none_was_asked_for(tmp_path: Path) -> None:
    fit(
        trainer_in(tmp_path, ModelCheckpoint(dirpath=tmp_path / "c", every_n_train_steps=2), max_steps=3),
        tmp_path / "t",
    )
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["epoch=0-step=2.ckpt"]


def test_a_link_to_the_checkpoint_before_becomes_the_last_one(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(dirpath=tmp_path / "c", filename="{step}", every_n_train_steps=2, save_last="link")
    fit(trainer_in(tmp_path, keeper, max_steps=3), tmp_path / "t")
    assert saved_step(tmp_path / "c") == 3
    assert torch.load(tmp_path / "c" / "step=2.ckpt", weights_only=True)["global_step"] == 2


def test_the_end_by_time_and_by_early_stopping(tmp_path: Path) -> None:
    class Enough(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3  # as Timer does when the time is over

    trainer = trainer_in(tmp_path, Enough(), keeper_in(tmp_path / "time"))
    fit(trainer, tmp_path / "t")
    assert saved_step(tmp_path / "time") == trainer.global_step == 3

    class Worse(StandInModule):
        def on_validation_epoch_end(self) -> None:
            self.log("v", float(self.global_step))

    stopping = EarlyStopping("v", patience=1)
    trainer = trainer_in(tmp_path, stopping, keeper_in(tmp_path / "early", every_n_train_steps=5), val_check_interval=3)
    trainer.fit(Worse(), datamodule=StandInData())
    assert saved_step(tmp_path / "early") == trainer.global_step == 6


def small(actor: Path, kind: str) -> L.LightningModule:
    generation = GenerationConfig(max_prompt_length=8, max_new_tokens=4, samples_per_prompt=2)
    if kind == "ppo":
        return tiny_ppo(actor, generation=generation, ppo=PPOConfig(epochs=1, minibatches=1))
    return SupervisedModule(ActorConfig(path=str(actor)), generation, warmup_steps=0, schedule="constant")


@pytest.mark.parametrize("kind", ["ppo", "supervised"])
def test_saved_before_the_evaluation_of_the_end_and_resumed_exactly(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = tiny_actor(tmp_path / "actor")
    seen: list[int] = []
    evaluate = BeforeAfterReport._evaluate

    def noted(self: BeforeAfterReport, trainer: L.Trainer, module: Any) -> Any:
        seen.append(saved_step(tmp_path / "c") if trainer.global_step else 0)
        return evaluate(self, trainer, module)

    monkeypatch.setattr(BeforeAfterReport, "_evaluate", noted)

    def run(steps: int, name: str, resume: Path | None = None) -> L.LightningModule:
        module = small(actor, kind)
        keeper = ModelCheckpoint(dirpath=tmp_path / name, every_n_train_steps=2, save_last=True)
        callbacks = [BeforeAfterReport(), keeper, GracefulStop()]
        data = TextData(batch_size=4, size=20)
        components = [ScoreOf("share", share_of_a)]
        tiny_fit(tmp_path, module, components, steps, data, resume, callbacks=callbacks, enable_checkpointing=True)
        return module

    run(3, "c")
    assert seen == [0, 3]
    parts = run(5, "c", tmp_path / "c" / "last.ckpt").state_dict()
    whole = run(5, "whole").state_dict()
    assert saved_step(tmp_path / "c") == 5
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
