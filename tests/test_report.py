"""The before/after report on a real tiny run: what it measures, writes, and keeps over a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_dterm.callbacks.report import BeforeAfterReport, summarise
from lightning_dterm.cli import print_summary
from lightning_dterm.dterm import HypernetworkWeighting
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.types import CodeTask
from tests.cli_stand_in import StandInModule
from tests.tiny import ScoreOf, TextData, share_of_a, text_task, tiny_actor, tiny_trainer


def module_for(actor: Path) -> PPOModule:
    return PPOModule(
        actor=ActorConfig(path=str(actor)),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=6, samples_per_prompt=2),
        ppo=PPOConfig(epochs=2, minibatches=1),
        kl=KLConfig(placement="report"),
        optimizer=OptimizerConfig(actor_lr=3e-3),
    )


def run(tmp_path: Path, module: PPOModule, steps: int, resume: Path | None = None) -> Path:
    path = tmp_path / "summary.json"
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], steps, callbacks=[BeforeAfterReport(str(path))])
    trainer.fit(module, datamodule=TextData(batch_size=8, size=64), ckpt_path=resume)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    return path


def test_summary_has_what_the_run_did(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    module = module_for(tiny_actor(tmp_path / "actor"))
    summary = json.loads(run(tmp_path, module, 6).read_text())
    assert summary["rollouts"] == 6
    assert summary["train_seconds"] > 0
    assert summary["mean_success"].keys() == {"before", "after"}
    assert summary["tasks"]["synthesis"]["exact_match"]["before"] == 0.0
    # BLEU, length and KL against the module's own answers, the independent way
    tasks = TextData(batch_size=8).test_tasks()
    answers = module.complete(tasks, 0.0)
    expected = sum(answers.lengths) / len(answers.lengths)
    assert summary["tasks"]["synthesis"]["length"]["after"] == pytest.approx(expected)
    assert summary["kl"] != 0

    again = BeforeAfterReport(str(tmp_path / "again.json"))
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 7, callbacks=[again])
    trainer.fit(
        module_for(tmp_path / "actor"), datamodule=TextData(batch_size=8, size=64), ckpt_path=tmp_path / "end.ckpt"
    )
    resumed = json.loads((tmp_path / "again.json").read_text())
    assert resumed["tasks"]["synthesis"]["length"]["before"] == summary["tasks"]["synthesis"]["length"]["before"]
    assert resumed["train_seconds"] > summary["train_seconds"]


def test_a_run_stopped_in_its_last_evaluation_reports_at_the_resume(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    summary = run(tmp_path, module_for(tiny_actor(tmp_path / "actor")), 2)
    expected = json.loads(summary.read_text())
    summary.unlink()
    run(tmp_path, module_for(tmp_path / "actor"), 2, resume=tmp_path / "end.ckpt")
    assert json.loads(summary.read_text())["tasks"] == expected["tasks"]


def test_a_kill_while_the_summary_is_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    write_text = Path.write_text

    def killed_half_way(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        write_text(path, text[: len(text) // 2])
        raise SystemExit("killed")

    report = BeforeAfterReport(str(tmp_path / "summary.json"))
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1, callbacks=[report])
    module = module_for(tiny_actor(tmp_path / "actor"))
    monkeypatch.setattr(Path, "write_text", killed_half_way)
    with pytest.raises(SystemExit, match="killed"):
        trainer.fit(module, datamodule=TextData(batch_size=8, size=64))
    assert not (tmp_path / "summary.json").exists()


class ForRepair(ScoreOf):
    """Applies to repairs only."""

    def applies_to(self, task: CodeTask) -> bool:
        return task.task_type == "repair"


class TwoTypes(TextData):
    """Tests of two types."""

    def test_tasks(self) -> list[CodeTask]:
        return [text_task(i, task_type=("synthesis", "repair")[i % 2]) for i in range(8)]


def test_weights_per_task_type_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    module = module_for(tiny_actor(tmp_path / "actor"))
    module.weighting = HypernetworkWeighting(prior={"share": 0.2, "long": 0.2, "repairs": 0.6})

    class Learned(L.Callback):
        """Stands in for the meta-step: a random actor succeeds at nothing to learn from."""

        def on_train_batch_end(self, *args: Any) -> None:
            with torch.no_grad():
                for parameter in module.weighting.parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))

    components = [ScoreOf("share", share_of_a), ScoreOf("long", lambda text: 0.5), ForRepair("repairs", lambda text: 1)]
    path = tmp_path / "summary.json"
    trainer = tiny_trainer(tmp_path, components, 1, callbacks=[Learned(), BeforeAfterReport(str(path))])
    trainer.fit(module, datamodule=TwoTypes(batch_size=8))
    weights = json.loads(path.read_text())["weights"]
    assert list(weights) == ["repair", "synthesis"]
    before = {kind: [pair["before"] for pair in row.values()] for kind, row in weights.items()}
    assert before["repair"] == pytest.approx([0.2, 0.2, 0.6], abs=1e-5)
    assert before["synthesis"][:2] == pytest.approx([0.5, 0.5], abs=1e-5)
    assert weights["synthesis"]["repairs"] == {"before": None, "after": None}
    tasks = [task for task in TwoTypes(batch_size=8).test_tasks() if task.task_type == "repair"]
    embedding = module.task_encoder.encode([task.description for task in tasks])
    alpha = module.weighting(embedding, torch.ones(4, 3, dtype=torch.bool), ["repair"] * 4).detach().mean(0)
    assert [pair["after"] for pair in weights["repair"].values()] == pytest.approx(alpha.tolist(), abs=1e-5)
    assert (alpha - torch.tensor([0.2, 0.2, 0.6])).abs().max() > 0.02
    shown = f"0.60 -> {float(alpha[2]):.2f}"
    assert shown in capsys.readouterr().out
    print_summary(path)
    out = capsys.readouterr().out
    assert shown in out
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in out.splitlines() if "synthesis" in line]
    assert cells[-1][3] == "-"  # never applicable


def test_unknown_metrics_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown metric blue, speed; metrics knows success, .*bleu") as refusal:
        BeforeAfterReport(metrics=["success", "blue", "speed"])
    assert "truncated" in str(refusal.value)
    assert BeforeAfterReport(metrics=["lint_per_100_lines"]).metrics == ["lint_per_100_lines"]


class OtherPrompts(TextData):
    """The same ids, other questions."""

    def test_tasks(self):  # type: ignore[no-untyped-def]
        return [text_task(i, "cd") for i in range(8)]


def resume(tmp_path: Path, steps: int, data: TextData, checkpoint: Path, **kwargs: Any) -> BeforeAfterReport:
    report = BeforeAfterReport(str(tmp_path / "again.json"), **kwargs)
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], steps, callbacks=[report])
    trainer.fit(module_for(tmp_path / "actor"), datamodule=data, ckpt_path=checkpoint)
    return report


def test_a_resumed_run_with_other_test_tasks_is_refused(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run(tmp_path, module_for(tiny_actor(tmp_path / "actor")), 1)
    checkpoint = tmp_path / "end.ckpt"
    # training goes on, and nothing is left but the report: both must refuse
    for steps in (2, 1):
        fewer = TextData(batch_size=8, size=64, limit_test=5)
        with pytest.raises(ValueError, match=r"8 then, 5 now; first difference in row 5: t/5 then, none now"):
            resume(tmp_path, steps, fewer, checkpoint)
        with pytest.raises(ValueError, match=r"other test tasks .* row 0: t/0 has another prompt") as refusal:
            resume(tmp_path, steps, OtherPrompts(batch_size=8, size=64), checkpoint)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "again.json").exists()
    resume(tmp_path, 2, TextData(batch_size=8, size=64), checkpoint)
    assert (tmp_path / "again.json").exists()


def test_a_checkpoint_that_names_no_tasks_is_told() -> None:
    report = BeforeAfterReport()
    with pytest.warns(UserWarning, match="does not say which tasks"):
        report.load_state_dict({"before": '{"greedy": {}}', "train_seconds": 1.0})


def test_an_untrained_run_reports_no_kl(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    module = module_for(tiny_actor(tmp_path / "actor"))
    module.optimizer_config.actor_lr = module.optimizer_config.critic_lr = 0.0
    summary = json.loads(run(tmp_path, module, 1).read_text())
    assert summary["kl"] == pytest.approx(0.0, abs=1e-6)
    for part in (summary, summary["sampled"]):
        for figures in part["tasks"].values():
            assert all(pair["before"] == pair["after"] for pair in figures.values())


def test_means_are_over_task_types() -> None:
    def table(repair: float, synthesis: float) -> dict:  # type: ignore[type-arg]
        from lightning_dterm.metrics import FIGURES

        def group(value: float) -> dict:  # type: ignore[type-arg]
            return {name: {"value": value, "low": value, "high": value} for name in FIGURES}

        return {"overall": group(0.9), "tasks": {"repair": group(repair), "synthesis": group(synthesis)}}

    before, after = table(0.1, 0.5), table(0.3, 0.9)
    summary = summarise({"greedy": before, "sampled": before}, {"greedy": after, "sampled": after}, 0.5, 1.0)
    assert summary["mean_success"] == {"before": pytest.approx(0.3), "after": pytest.approx(0.6)}
    assert summary["tasks"]["repair"]["success"]["before"] == 0.1
    assert summary["kl"] == 0.5
    with pytest.warns(UserWarning, match="KL to the reference is nan"):
        diverged = summarise({"greedy": before, "sampled": before}, {"greedy": after, "sampled": after}, math.nan, 1.0)
    assert diverged["kl"] is None


def test_supervised_training_is_reported_without_kl(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    generation = GenerationConfig(max_prompt_length=16, max_new_tokens=6)
    actor = ActorConfig(path=str(tiny_actor(tmp_path / "actor")))
    module = SupervisedModule(actor, generation, lr=3e-2, warmup_steps=0, schedule="constant")
    path = tmp_path / "summary.json"
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 6, callbacks=[BeforeAfterReport(str(path))])
    trainer.fit(module, datamodule=TextData(batch_size=8, size=64))
    summary = json.loads(path.read_text())
    assert summary["kl"] is None
    assert summary["steps"] == 6
    bleu = summary["tasks"]["synthesis"]["bleu"]
    assert bleu["after"] > bleu["before"]


def test_what_cannot_be_reported_on_is_refused_before_training(tmp_path: Path) -> None:
    report = BeforeAfterReport(str(tmp_path / "summary.json"))
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1)
    with pytest.raises(ValueError, match="BeforeAfterReport needs PPOModule or SupervisedModule, got StandInModule"):
        report.setup(trainer, StandInModule(), "fit")
    with pytest.raises(ValueError, match="BeforeAfterReport needs a DataModule"):
        report.setup(trainer, module_for(tiny_actor(tmp_path / "actor")), "fit")
