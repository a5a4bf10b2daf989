"""Preference: the Bradley-Terry loss, a reward model that learns pairs, and the component that reads it (eq. 12)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import Linear
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_dterm.cli import main
from lightning_dterm.data import PreferenceDataModule, RowError
from lightning_dterm.data.preferences import pair_from_row
from lightning_dterm.dterm import UniformWeighting
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.config import GenerationConfig
from lightning_dterm.modules.loading import ActorLoadError
from lightning_dterm.modules.preference import PreferenceModule
from lightning_dterm.reward_model import CALIBRATION, Calibration, bradley_terry_loss, encode, load_reward_model
from lightning_dterm.rewards import PreferenceReward
from lightning_dterm.types import CodeTask, Rollout, Sample
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_fit, tiny_ppo, tiny_text_encoder


def write_pairs(path: Path, start: int, count: int, flipped: bool = False) -> str:
    """Completions that return are preferred to those that print; all else differs from pair to pair."""
    rows = []
    for i in range(start, start + count):
        body = f"x * {i % 13} + {i % 7}"
        good, bad = f"    return {body}", f"    print({body})"
        if flipped and i % 2:
            good, bad = bad, good
        rows.append({"prompt": f"def f{i % 5}(x):\n", "chosen": good, "rejected": bad})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(actor: Path, folder: Path, flipped: bool = False, steps: int = 60, **kwargs: Any) -> dict[str, float]:
    data = PreferenceDataModule(
        train_files=write_pairs(folder / "train.jsonl", 0, 64, flipped),
        test_files=write_pairs(folder / "test.jsonl", 64, 41, flipped),
        batch_size=16,
        seed=0,
        cache_dir=str(folder / "cache"),
    )
    module = PreferenceModule(str(actor), lr=3e-3, warmup_steps=5, export_dir=str(folder / "model"), **kwargs)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.test(module, data, verbose=False)[0].items()}


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


@pytest.fixture(scope="module")
def trained(actor: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("preference")
    return folder / "model", train(actor, folder)


def test_the_loss_is_minus_the_log_of_the_logistic_function() -> None:
    chosen, rejected = torch.tensor([0.0, 2.0, -100.0]), torch.tensor([0.0, -1.0, 100.0])
    wanted = [math.log(2), math.log(1 + math.exp(-3)), 200.0]
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx(wanted)


def test_its_gradient_is_the_probability_of_being_wrong() -> None:
    chosen, rejected = torch.tensor([1.0], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    bradley_terry_loss(chosen, rejected).sum().backward()
    wrong = 1 / (1 + math.exp(0.5))
    assert float(chosen.grad) == pytest.approx(-wrong)
    assert float(rejected.grad) == pytest.approx(wrong)


def test_it_learns_pairs_it_has_not_seen(trained: tuple[Path, dict[str, float]]) -> None:
    _, figures = trained
    assert figures["test/accuracy"] > 0.95
    assert figures["test/loss"] < 0.2
    assert figures["test/margin"] > 1


def test_contradictory_pairs_teach_nothing(actor: Path, tmp_path: Path) -> None:
    figures = train(actor, tmp_path, flipped=True, steps=30)
    assert 0.3 < figures["test/accuracy"] < 0.7


def test_the_component_prefers_what_the_pairs_did(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    reward = PreferenceReward(str(folder), batch_size=3)
    reward.setup()
    task = CodeTask("t", "synthesis", "python", "def f1(x):\n", "", "")
    texts = [f"    return x * {i}" for i in range(4)] + [f"    print(x * {i})" for i in range(4)] + ["", "  \n"]
    results = reward.score([Sample(task, text, ((0, len(text)),)) for text in texts])
    values = [result.value for result in results]
    assert min(values[:4]) > 0.6
    assert max(values[4:8]) < 0.4
    assert values[8:] == [0.0, 0.0]
    assert all(0 <= value <= 1 for value in values)


def test_the_component_is_transformers_own_logit(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    center, scale = getattr(model.config, CALIBRATION)
    reward = PreferenceReward(str(folder), batch_size=8)
    reward.setup()
    task = CodeTask("t", "synthesis", "python", "def f(x):\n", "", "")
    texts = ["    return x", "    print(x)  # and a longer line than the other", "y"]
    results = reward.score([Sample(task, text, ((0, len(text)),)) for text in texts])
    for text, result in zip(texts, results, strict=True):
        with torch.no_grad():
            logit = float(model(**tokenizer(task.prompt, text, return_tensors="pt")).logits)
        assert result.value == pytest.approx(1 / (1 + math.exp(-(logit - center) / scale)), abs=1e-5)
    assert scale > 0


def test_calibration_can_be_given(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    plain, moved = PreferenceReward(str(folder), center=0.0, scale=1.0), PreferenceReward(str(folder), center=50.0)
    task, text = CodeTask("t", "synthesis", "python", "def f(x):\n", "", ""), "    return x"
    for reward in (plain, moved):
        reward.setup()
    high, low = (reward.score([Sample(task, text, ((0, len(text)),))])[0].value for reward in (plain, moved))
    assert low < 1e-3 < high
    assert Calibration(1.0, 2.0)(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))])


def test_a_logit_that_is_not_finite_is_a_failure_and_no_score(trained: tuple[Path, dict[str, float]]) -> None:
    reward = PreferenceReward(str(trained[0]))
    reward.setup()
    head = reward._model.score  # type: ignore[union-attr]
    assert isinstance(head, Linear)
    head.weight.fill_(float("nan"))
    task = CodeTask("t", "synthesis", "python", "def f(x):\n", "", "")
    result = reward.score([Sample(task, "    return x", ((0, 12),))])[0]
    assert result.value is None
    assert "not finite" in str(result.error)


def test_where_it_does_not_apply_its_weight_is_zero(
    trained: tuple[Path, dict[str, float]], actor: Path, tmp_path: Path
) -> None:
    """In a run: repair tasks give the preference component no weight and the other one all."""
    seen: dict[str, list[list[float]]] = {"synthesis": [], "repair": []}

    class Watch(RolloutCallback):
        def on_rewards_end(self, trainer: L.Trainer, module: L.LightningModule, rollout: Rollout) -> None:
            for task, alpha in zip(rollout.tasks, rollout.alpha.tolist(), strict=True):  # type: ignore[union-attr]
                seen[task.task_type].append(alpha)

    rewards = [ScoreOf("share", share_of_a), PreferenceReward(str(trained[0]), task_types=["synthesis"])]
    module = tiny_ppo(actor, weighting=UniformWeighting(), generation=GenerationConfig(64, 8))
    tiny_fit(tmp_path, module, rewards, 1, TextData(batch_size=16), callbacks=[Watch()])
    assert seen["repair"]
    assert all(row == [1.0, 0.0] for row in seen["repair"])
    assert seen["synthesis"]
    assert all(row == pytest.approx([0.5, 0.5]) for row in seen["synthesis"])


def test_an_encoder_with_a_new_head_can_be_trained(tmp_path: Path) -> None:
    folder = tiny_text_encoder(tmp_path / "encoder")
    model, tokenizer = load_reward_model(str(folder))
    encoded = encode(tokenizer, ["fix", "fix the bug"], ["the bug", "bug"], 16)
    assert encoded["input_ids"][0].tolist() == [2, 4, 3, 5, 6, 3, 0]
    assert model.config.num_labels == 1
    assert model(**encoded).logits.shape == (2, 1)


def test_what_is_too_long_loses_its_beginning(actor: Path) -> None:
    _, tokenizer = load_reward_model(str(actor))
    encoded = encode(tokenizer, ["a" * 40], ["xyz"], 8)
    assert tokenizer.decode(encoded["input_ids"][0]).endswith("axyz")
    assert encoded["input_ids"].shape[1] == 8
    assert encoded.encodings[0].overflowing


def test_a_classifier_of_several_labels_is_refused(actor: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(actor, num_labels=3).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(actor).save_pretrained(tmp_path)
    with pytest.raises(ActorLoadError, match="3 labels"):
        load_reward_model(str(tmp_path))
    with pytest.raises(ActorLoadError, match="nowhere"):
        load_reward_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "'rejected': missing"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "teaches nothing"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "'prompt': empty"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "'chosen': text is needed"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score": 1}, "'score': no field of a pair"),
    ],
)
def test_a_malformed_row_names_its_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=f"pairs.jsonl, line 3.*{message}"):
        pair_from_row(row, "pairs.jsonl, line 3")


@pytest.mark.parametrize(
    "settings", [{"lr": 0.0}, {"schedule": "cosine"}, {"max_length": 1}, {"warmup_steps": -1}, {"weight_decay": -0.1}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        PreferenceModule(**settings)


def test_resuming_is_exact(actor: Path, tmp_path: Path) -> None:
    """Four steps in one go, and two and two."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", 0, 40)
    states = []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        checkpoint = None
        for stop in stops:
            data = PreferenceDataModule(train_files=pairs, batch_size=8, seed=0, cache_dir=str(tmp_path / "cache"))
            module = PreferenceModule(str(actor), warmup_steps=3)
            trainer = L.Trainer(
                accelerator="cpu",
                max_steps=stop,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,
                default_root_dir=tmp_path,
            )
            trainer.fit(module, data, ckpt_path=checkpoint)
            checkpoint = tmp_path / f"{name}{stop}.ckpt"
            trainer.save_checkpoint(checkpoint)
        states.append(torch.load(checkpoint, weights_only=True))
    whole, parts = states
    assert whole["global_step"] == parts["global_step"] == 4
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())
    moments = [state["optimizer_states"][0]["state"][0]["exp_avg"] for state in states]
    assert torch.equal(*moments)
    assert whole["lr_schedulers"] == parts["lr_schedulers"]


def test_the_packaged_configuration_trains(
    tmp_path: Path, actor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 0, 32)
    arguments = ["fit", "-c", "configs/preference.yaml", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]
    arguments += ["--data.init_args.train_files", pairs, "--data.init_args.validation_files", pairs]
    arguments += ["--data.init_args.cache_dir", str(tmp_path / "cache"), "--model.init_args.path", str(actor)]
    main(arguments)
    assert "reward model written to" in capsys.readouterr().out
    assert load_reward_model("runs/preference/reward_model")[0].config.num_labels == 1
    assert list(Path("runs/preference").glob("version_0/checkpoints/last.ckpt"))


@pytest.mark.slow
def test_two_processes_are_one(actor: Path, tmp_path: Path) -> None:
    """The same weights and moments from the same pairs, and means over unequal shares of the test pairs."""
    write_pairs(tmp_path / "pairs.jsonl", 0, 33)
    script = tmp_path / "run.py"  # a file: Lightning starts the second process by it
    script.write_text(_TWO)
    found = []
    for devices in (1, 2):
        command = [sys.executable, str(script), str(tmp_path), str(actor), str(devices)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run(command, check=True, env=environment, timeout=300)
        figures = json.loads((tmp_path / f"{devices}.json").read_text())
        found.append((figures, torch.load(tmp_path / f"{devices}.ckpt", weights_only=True)["state_dict"]))
    (one, weights), (two, others) = found
    assert two == pytest.approx(one, abs=1e-5)
    assert all(torch.allclose(weights[name].double(), others[name].double(), atol=1e-6) for name in weights)


_TWO = """
import json, sys
from pathlib import Path
from lightning_dterm.data import PreferenceDataModule
from lightning_dterm.modules.preference import PreferenceModule
from lightning_dterm.trainer import DTermTrainer

folder, devices = Path(sys.argv[1]), int(sys.argv[3])
pairs = str(folder / "pairs.jsonl")
data = PreferenceDataModule(
    train_files=pairs, test_files=pairs, batch_size=8, seed=0, cache_dir=str(folder / "cache")
)
module = PreferenceModule(sys.argv[2], warmup_steps=2, max_length=14)
trainer = DTermTrainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=4, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0, default_root_dir=str(folder),
)
trainer.fit(module, data)
trainer.save_checkpoint(folder / f"{devices}.ckpt")
figures = trainer.test(module, data, verbose=False)[0]
if trainer.is_global_zero:
    (folder / f"{devices}.json").write_text(json.dumps({name: float(value) for name, value in figures.items()}))
"""
