"""The warm start: its loss against transformers' own, micro-batches, learning, export; and making an actor."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import MixedPrecision
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_dterm.callbacks.stop import GracefulStop
from lightning_dterm.init_actor import init_actor, train_tokenizer
from lightning_dterm.modules import supervised as supervised_module
from lightning_dterm.modules.config import GenerationConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.types import CodeTask
from tests.tiny import TextData, text_task, tiny_actor


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


def supervised(actor: Path, **kwargs: object) -> SupervisedModule:
    module = SupervisedModule(ActorConfig(path=str(actor)), GenerationConfig(64, 16), **kwargs)  # type: ignore[arg-type]
    module.configure_model()
    return module


def quiet_trainer(root: Path, steps: int, **kwargs: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": steps,
        "default_root_dir": root,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "limit_val_batches": 0,
    }
    return L.Trainer(**{**settings, **kwargs})


def mean_loss(module: SupervisedModule, tasks) -> torch.Tensor:  # type: ignore[no-untyped-def]
    parts = module.micro_batches(tasks)
    return sum(module.loss_sum(*part) for part in parts) / sum(w[:, 1:].sum() for _, _, w in parts)


@pytest.mark.parametrize("prompt_weight", [0.0, 1.0])
def test_loss_is_transformers_own(actor: Path, prompt_weight: float) -> None:
    tasks = [text_task(i, "x" * (1 + 3 * i)) for i in range(5)]
    module = supervised(actor, prompt_loss_weight=prompt_weight)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(actor).eval(), AutoTokenizer.from_pretrained(actor)
    total, tokens = 0.0, 0
    for task in tasks:
        prompt = tokenizer(task.prompt)["input_ids"]
        target = [*tokenizer(task.reference)["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([(prompt if prompt_weight else [-100] * len(prompt)) + target])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([prompt + target]), labels=labels).loss
        counted = int((labels[:, 1:] != -100).sum())
        total, tokens = total + float(loss) * counted, tokens + counted
    assert float(mean_loss(module, tasks)) == pytest.approx(total / tokens, abs=1e-5)


def test_micro_batches_change_nothing(actor: Path) -> None:
    tasks = [text_task(i, "x" * (1 + 2 * i)) for i in range(7)]
    gradients = []
    for size in (None, 1, 3):
        module = supervised(actor, micro_batch_size=size)
        mean_loss(module, tasks).backward()
        gradients.append([p.grad.clone() for p in module.language_model.parameters()])
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[0], other, strict=True))


def test_it_learns_and_exports(actor: Path, tmp_path: Path) -> None:
    module = SupervisedModule(
        ActorConfig(path=str(actor)),
        GenerationConfig(16, 8),
        lr=1e-2,
        warmup_steps=5,
        micro_batch_size=4,
        export_dir=str(tmp_path / "out"),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=60,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=TextData(batch_size=8, size=16))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    task = text_task(3)
    prompt = torch.tensor([tokenizer(task.prompt)["input_ids"]])
    out = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True) == task.reference
    assert module.complete([task], 0.0).texts == [task.reference]


def test_16_mixed_is_refused_in_one_line(actor: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))],
    )
    with pytest.raises(ValueError, match=r"trainer\.precision 16-mixed is not supported: use bf16-mixed") as refusal:
        trainer.fit(supervised(actor), datamodule=TextData(batch_size=8, size=16))
    assert "\n" not in str(refusal.value)


def test_over_long_rows_are_cut_and_counted(actor: Path) -> None:
    module = supervised(actor, max_target_length=1)
    ids, mask, weights = module.encode([text_task(0, "y" * 200)])
    assert module.overlong_prompts == 1
    assert module.cut_references == 1
    assert int(mask.sum()) == 64 + 1
    assert int((weights > 0).sum()) == 1
    assert ids.shape == mask.shape == weights.shape


def test_tensor_parallelism_is_refused(actor: Path) -> None:
    module = SupervisedModule(ActorConfig(path=str(actor)))
    sizes = {"data_parallel": 1, "tensor_parallel": 2}
    module._device_mesh = {name: SimpleNamespace(size=lambda n=n: n) for name, n in sizes.items()}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="tensor_parallel_size must be 1: "):
        module.configure_model()
    assert module.model is None


@pytest.mark.parametrize(
    "setting",
    [
        {"micro_batch_size": 0},
        {"micro_batch_size": -2},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"weight_decay": -0.1},
        {"warmup_steps": -1},
        {"max_target_length": 0},
        {"prompt_loss_weight": -0.5},
        {"prompt_loss_weight": float("nan")},
        {"max_grad_norm": 0.0},
    ],
)
def test_bad_settings_are_named(actor: Path, setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        SupervisedModule(ActorConfig(path=str(actor)), **setting)  # type: ignore[arg-type]


def test_a_batch_without_loss_is_refused(actor: Path, tmp_path: Path) -> None:
    """An empty prompt and a reference cut to its first token leave that token alone, which nothing predicts."""

    class Empty(TextData):
        def train_tasks(self):  # type: ignore[no-untyped-def]
            return [CodeTask(f"t/{i}", "synthesis", "text", "", "", "abc") for i in range(8)]

    module = supervised(actor, schedule="constant", max_target_length=1)
    with pytest.raises(ValueError, match=r"step 0: ..*no token.*t/"):
        quiet_trainer(tmp_path, 1).fit(module, datamodule=Empty(batch_size=4))


@pytest.mark.parametrize("reference", ["", " \n"])
def test_tasks_without_a_reference_are_refused_by_name(actor: Path, tmp_path: Path, reference: str) -> None:
    """Their target would be the end token alone: the model would learn to answer nothing."""

    class Some(TextData):
        def train_tasks(self):  # type: ignore[no-untyped-def]
            given = {1: reference, 3: reference}
            return [CodeTask(f"u/{i}", "synthesis", "text", "write f", "d", given.get(i, "abc")) for i in range(4)]

    module = supervised(actor, schedule="constant")
    with pytest.raises(ValueError, match=r"^2 of the batch's tasks have no reference to learn \(u/[13], u/[13]\)"):
        quiet_trainer(tmp_path, 1).fit(module, datamodule=Some(batch_size=4))


def test_a_missing_reference_of_another_rank_is_refused_here_too(actor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = supervised(actor)
    monkeypatch.setattr(supervised_module, "all_sum", lambda counts: counts + torch.tensor([0, 0, 1]))
    monkeypatch.setattr(supervised_module, "all_gather", lambda own: [own, ["u/7"]])
    with pytest.raises(ValueError, match=r"^1 of the batch's tasks have no reference to learn \(u/7\)"):
        module.encode([text_task(0)])


class Counters(L.Callback):
    def __init__(self) -> None:
        self.logged: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        names = "train/overlong_prompts", "train/cut_references"
        self.logged.append(tuple(float(trainer.callback_metrics[name]) for name in names))  # type: ignore[arg-type]


def test_counts_go_on_after_a_resume(actor: Path, tmp_path: Path) -> None:
    def run(steps: int, resume: Path | None = None) -> tuple[L.Trainer, list[tuple[float, float]]]:
        counters = Counters()
        module = SupervisedModule(
            ActorConfig(path=str(actor)), GenerationConfig(1, 8), schedule="constant", max_target_length=1
        )
        trainer = quiet_trainer(tmp_path, steps, callbacks=[counters])
        trainer.fit(module, datamodule=TextData(batch_size=4, size=16), ckpt_path=resume)
        return trainer, counters.logged

    _, whole = run(4)
    assert whole == [(4.0, 4.0), (8.0, 8.0), (12.0, 12.0), (16.0, 16.0)]
    run(2)[0].save_checkpoint(tmp_path / "half.ckpt")
    assert run(4, tmp_path / "half.ckpt")[1] == whole[2:]


def test_export_when_resumed_after_the_last_step(actor: Path, tmp_path: Path) -> None:
    """Killed between the last checkpoint and the export."""
    first = quiet_trainer(tmp_path, 1)
    first.fit(supervised(actor), datamodule=TextData(batch_size=4, size=8))
    first.save_checkpoint(tmp_path / "last.ckpt")
    module = supervised(actor, export_dir=str(tmp_path / "out"))
    quiet_trainer(tmp_path, 1).fit(module, datamodule=TextData(batch_size=4, size=8), ckpt_path=tmp_path / "last.ckpt")
    assert (tmp_path / "out" / "config.json").exists()


def test_a_stopped_run_without_max_steps_exports_nothing(actor: Path, tmp_path: Path) -> None:
    class Interrupt(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    module = supervised(actor, schedule="constant", export_dir=str(tmp_path / "out"))
    trainer = quiet_trainer(tmp_path, -1, max_epochs=3, callbacks=[Interrupt(), GracefulStop()])
    trainer.fit(module, datamodule=TextData(batch_size=4, size=8))
    assert trainer.global_step == 1
    assert not (tmp_path / "out").exists()


def test_predict_without_predictions_is_refused(actor: Path, tmp_path: Path) -> None:
    data = TextData(batch_size=4)
    with pytest.raises(ValueError, match="return_predictions false"):
        quiet_trainer(tmp_path, 1).predict(supervised(actor), datamodule=data, return_predictions=False)
    assert not (tmp_path / "completions.jsonl").exists()


def test_unknown_schedule_is_refused(actor: Path) -> None:
    with pytest.raises(ValueError, match="schedule"):
        supervised(actor, schedule="linearish")


TOKENIZER = train_tokenizer(["def getName(self):\n    return self.name_of[0]\n", "x = 10 + 23\n"], 300)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_trained_tokenizer_round_trips_any_text(text: str) -> None:
    if "<|" in text:
        return  # special tokens are special
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_init_actor_makes_what_it_says(tmp_path: Path) -> None:
    class Python(TextData):
        def train_tasks(self):  # type: ignore[no-untyped-def]
            return [text_task(i, "def f(x): return x + 1\n") for i in range(20)]

    for name in ("a", "b"):
        init_actor(Python(batch_size=1), str(tmp_path / name), vocab_size=270, hidden_size=16, layers=1, heads=2)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("a", "b"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert one.config.eos_token_id == tokenizer.eos_token_id
    assert one.config.vocab_size == len(tokenizer) <= 270
