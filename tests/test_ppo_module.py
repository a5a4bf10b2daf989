"""The PPO iteration: exact resume, step counting, masks, learning rates, clipping, checkpoints, refusals."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_dterm.callbacks.report import BeforeAfterReport
from lightning_dterm.dterm import HypernetworkWeighting
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig, LoraSettings
from lightning_dterm.modules.checkpoints import ResumeError
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import CodeTask, Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_fit, tiny_ppo, tiny_trainer


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


def ppo(actor: Path, **overrides: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "generation": GenerationConfig(max_prompt_length=16, max_new_tokens=8, samples_per_prompt=2),
        "ppo": PPOConfig(epochs=2, minibatches=2),
        "kl": KLConfig(coef=0.1, target=0.5, horizon=100),
        "optimizer": OptimizerConfig(actor_lr=1e-3, critic_lr=1e-3, weighting_lr=1e-2),
        "weighting": HypernetworkWeighting(),
    }
    return tiny_ppo(actor, **{**settings, **overrides})


COMPONENTS = {"share": share_of_a, "long": lambda text: min(1.0, len(text) / 8)}


def components() -> list[ScoreOf]:
    return [ScoreOf(name, function) for name, function in COMPONENTS.items()]


class Record(RolloutCallback):
    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.rollouts: list[Rollout] = []
        self.counted: list[int] = []

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        self.rollouts.append(rollout)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        metrics = self.rollouts[-1].metrics
        self.metrics.append({k: v for k, v in metrics.items() if not k.startswith(("time", "throughput"))})
        self.counted.append(trainer.global_step)


def fit(tmp_path: Path, module: PPOModule, steps: int, **kwargs: Any) -> tuple[L.Trainer, Record]:
    record = Record()
    data = TextData(**{"batch_size": 8, "size": 20, **kwargs.pop("data", {})})
    callbacks = [record, *kwargs.pop("extra", [])]
    return tiny_fit(tmp_path, module, components(), steps, data, callbacks=callbacks, **kwargs), record


def weights(module: PPOModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_equal_states(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal_states(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_states(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), where
    else:
        assert a == b or (a != a and b != b), where


def stateful(folder: Path) -> dict[str, Any]:
    """Callbacks that have something to carry over a resume."""
    often: dict[str, Any] = {"every_n_train_steps": 1, "save_top_k": 2, "save_last": True}
    saver = ModelCheckpoint(folder, monitor="reward/total", mode="max", **often)
    return {"extra": [saver, BeforeAfterReport(str(folder / "summary.json"))], "enable_checkpointing": True}


def comparable(callbacks: dict[str, Any]) -> dict[str, Any]:
    """Callbacks' state by class, paths without their folder, times left out."""
    states = {key.partition("{")[0]: dict(state) for key, state in callbacks.items()}
    saver = states["ModelCheckpoint"]
    assert saver.pop("dirpath")
    saver.pop("current_score")  # Lightning saves it and restores it never
    saver["best_k_models"] = {Path(path).name: score for path, score in saver["best_k_models"].items()}
    for key, value in saver.items():
        if key.endswith("_path"):
            saver[key] = Path(value).name
    assert states["BeforeAfterReport"].pop("train_seconds") > 0
    return states


@pytest.mark.parametrize("half", [1, 3, 4])
def test_resume_is_exact_to_the_bit(actor: Path, tmp_path: Path, half: int) -> None:
    """20 rows in batches of 8: the halves end within an epoch, and across its boundary."""
    whole = ppo(actor)
    trainer, record = fit(tmp_path / "whole", whole, 6, **stateful(tmp_path / "whole"))
    state_rng = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    trainer.save_checkpoint(tmp_path / "whole.ckpt")

    _, first = fit(tmp_path / "first", ppo(actor), half, **stateful(tmp_path / "parts"))
    torch.manual_seed(99)  # a new process starts with another state
    second_module = ppo(actor)
    again = stateful(tmp_path / "parts")
    second_trainer, second = fit(tmp_path / "second", second_module, 6, resume=tmp_path / "parts/last.ckpt", **again)
    resumed_rng = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    second_trainer.save_checkpoint(tmp_path / "resumed.ckpt")

    assert record.metrics == first.metrics + second.metrics
    assert [r.texts for r in record.rollouts] == [r.texts for r in first.rollouts + second.rollouts]
    ids = [[t.task_id for t in r.tasks] for r in record.rollouts]
    assert ids == [[t.task_id for t in r.tasks] for r in first.rollouts + second.rollouts]
    a = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    b = torch.load(tmp_path / "resumed.ckpt", weights_only=True)
    a["callbacks"], b["callbacks"] = (comparable(checkpoint["callbacks"]) for checkpoint in (a, b))
    assert a["callbacks"].keys() == {"RewardComputation", "BeforeAfterReport", "ModelCheckpoint"}
    a["data"], b["data"] = (c["loops"]["fit_loop"]["state_dict"]["combined_loader"] for c in (a, b))
    for key in ("state_dict", "optimizer_states", "lightning_dterm", "global_step", "epoch", "callbacks", "data"):
        assert_equal_states(a[key], b[key], key)
    assert_equal_states(state_rng, resumed_rng)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(second_module)[name]), name


def test_one_rollout_is_one_step(actor: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    _, record = fit(tmp_path, ppo(actor), 5, extra=[saver], enable_checkpointing=True)
    assert record.counted == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["step=2.ckpt", "step=4.ckpt"]
    assert all(m["ppo/steps"] == 4 for m in record.metrics)


def test_checkpoints_leave_out_what_can_be_reloaded(actor: Path, tmp_path: Path) -> None:
    module = ppo(actor, lora=LoraSettings(rank=2), critic=CriticConfig(kind="adapter"))
    trainer, _ = fit(tmp_path, module, 1)
    trainer.save_checkpoint(tmp_path / "lora.ckpt")
    saved = torch.load(tmp_path / "lora.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert all("lora_" in n or "value_head" in n or n.startswith("weighting.") for n in saved)
    full = ppo(actor)
    trainer, _ = fit(tmp_path, full, 1)
    trainer.save_checkpoint(tmp_path / "full.ckpt")
    saved = torch.load(tmp_path / "full.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("policy.actor.") for name in saved)
    assert not any("reference" in name for name in saved)


def test_resume_refuses_another_actor_and_other_parts(actor: Path, tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, ppo(actor), 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = tiny_actor(tmp_path / "other", seed=1)
    with pytest.raises(ResumeError, match=r"actor.path is .*other"):
        fit(tmp_path, ppo(other), 2, resume=tmp_path / "a.ckpt")
    with pytest.raises(ResumeError, match=r"critic\.kind is shared in this checkpoint and separate in this run"):
        fit(tmp_path, ppo(actor, critic=CriticConfig(kind="separate")), 2, resume=tmp_path / "a.ckpt")
    trainer = tiny_trainer(tmp_path, components()[:1], 2)
    with pytest.raises(ResumeError, match="components share, long"):
        trainer.fit(ppo(actor), datamodule=TextData(batch_size=8, size=20), ckpt_path=tmp_path / "a.ckpt")


def test_exported_actor_loads_in_plain_transformers(actor: Path, tmp_path: Path) -> None:
    for name, lora in (("full", None), ("lora", LoraSettings(rank=4))):
        module = ppo(actor, lora=lora)
        fit(tmp_path, module, 3)
        folder = module.export(tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([tokenizer("ab12")["input_ids"]])
        with torch.no_grad():
            expected = module.language_model(input_ids=ids).logits
            before = AutoModelForCausalLM.from_pretrained(actor).eval()(input_ids=ids).logits
            assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
        assert not torch.allclose(expected, before, atol=1e-4)
    from peft import PeftModel

    adapter = module.export(tmp_path / "adapter", merge=False)
    assert not [entry for entry in adapter.iterdir() if entry.is_dir()]
    assert AutoTokenizer.from_pretrained(adapter)("ab12")["input_ids"] == ids[0].tolist()
    base = AutoModelForCausalLM.from_pretrained(actor)
    with torch.no_grad():
        for loaded in (PeftModel.from_pretrained(base, adapter), AutoModelForCausalLM.from_pretrained(adapter)):
            assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-5)


def test_micro_batches_change_nothing(actor: Path, tmp_path: Path) -> None:
    results = []
    for micro in (None, 1, 3):
        module = ppo(actor, ppo=PPOConfig(epochs=2, minibatches=2, micro_batch_size=micro))
        _, record = fit(tmp_path, module, 2)
        results.append((weights(module), record.metrics))
    for other, metrics in results[1:]:
        for name, tensor in results[0][0].items():
            assert torch.allclose(tensor, other[name], atol=1e-5), name
        for left, right in zip(results[0][1], metrics, strict=True):
            for name, value in left.items():
                assert value == pytest.approx(right[name], abs=1e-4, rel=1e-4), name


def test_gradients_are_clipped(actor: Path, tmp_path: Path) -> None:
    norms: list[float] = []

    class Watch(PPOModule):
        def clip_gradients_to(self, limit: float) -> torch.Tensor:
            before = super().clip_gradients_to(limit)
            parameters = [*self.policy.actor_parameters(), *self.policy.critic_parameters()]
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)))
            assert float(before) > limit
            return before

    base = ppo(actor)
    module = Watch(
        actor=base.actor_config,
        critic=base.critic_config,
        generation=base.generation,
        ppo=PPOConfig(max_grad_norm=1e-3),
    )
    fit(tmp_path, module, 2)
    assert norms
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in norms)


def test_first_ratio_is_exactly_one(actor: Path, tmp_path: Path) -> None:
    """With one step a rollout nothing can clip and the approximate KL to the old policy is 0."""
    _, record = fit(tmp_path, ppo(actor, ppo=PPOConfig(epochs=1, minibatches=1)), 2)
    for metrics in record.metrics:
        assert metrics["ppo/clip_fraction"] == 0
        assert metrics["ppo/approx_kl"] == pytest.approx(0, abs=1e-9)


def test_critic_warmup_leaves_the_actor_alone(actor: Path, tmp_path: Path) -> None:
    module = ppo(actor, critic=CriticConfig(kind="separate"), ppo=PPOConfig(critic_warmup=2))
    original = AutoModelForCausalLM.from_pretrained(actor).state_dict()
    fit(tmp_path, module, 2)
    assert all(torch.equal(p, original[name]) for name, p in module.language_model.named_parameters())
    assert module.policy.value_head.weight.abs().sum() > 0
    module = ppo(actor, critic=CriticConfig(kind="separate"), ppo=PPOConfig(critic_warmup=2))
    fit(tmp_path, module, 3)
    assert not all(torch.equal(p, original[name]) for name, p in module.language_model.named_parameters())


def test_learning_rates_follow_the_schedule(actor: Path, tmp_path: Path) -> None:
    settings = OptimizerConfig(actor_lr=1.0, critic_lr=2.0, warmup=2, schedule="linear")
    module = ppo(actor, optimizer=settings, ppo=PPOConfig(epochs=1, minibatches=1, max_grad_norm=1e-6))
    _, record = fit(tmp_path, module, 6)
    expected = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [m["lr/actor"] for m in record.metrics] == pytest.approx(expected)
    assert [m["lr/critic"] for m in record.metrics] == pytest.approx([2 * x for x in expected])


def test_what_is_configured_at_a_resume_counts(actor: Path, tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, ppo(actor), 1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    changed = OptimizerConfig(actor_lr=1e-6, critic_lr=2e-6, weight_decay=0.5, betas=[0.5, 0.6])
    module = ppo(actor, optimizer=changed)
    _, record = fit(tmp_path, module, 2, resume=tmp_path / "one.ckpt")
    assert record.metrics[0]["lr/actor"] == 1e-6
    assert record.metrics[0]["lr/critic"] == 2e-6
    group = module.optimizers().param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.5, 0.6))


def test_an_empty_prompt_names_its_task(actor: Path, tmp_path: Path) -> None:
    module = ppo(actor)
    with pytest.raises(ValueError, match="task x: the prompt is empty"):
        module.encode_prompts([CodeTask("x", "synthesis", "text", "", "", "")])


def test_target_kl_stops_the_epochs(actor: Path, tmp_path: Path) -> None:
    settings = PPOConfig(epochs=8, minibatches=2, target_kl=1e-6)
    _, record = fit(tmp_path, ppo(actor, ppo=settings), 2)
    assert all(m["ppo/early_stop"] == 1 and m["ppo/steps"] < 16 for m in record.metrics)


def test_throughput_counts_the_minibatches_that_ran(actor: Path, tmp_path: Path) -> None:
    seconds: list[float] = []

    class Clock(PPOModule):
        def _log(self, *args: Any) -> None:
            seconds.append(self.seconds["update"])
            super()._log(*args)

    for target, passes in ((1e-6, None), (None, 3)):
        base = ppo(actor)
        settings = PPOConfig(epochs=3, minibatches=1, target_kl=target)
        module = Clock(
            actor=base.actor_config,
            critic=base.critic_config,
            generation=base.generation,
            ppo=settings,
            optimizer=base.optimizer_config,
        )
        record = Record()
        trainer = tiny_trainer(tmp_path, components(), 1, callbacks=[record])
        trainer.fit(module, datamodule=TextData(batch_size=8, size=20))
        metrics = record.rollouts[0].metrics
        ran = metrics["ppo/steps"] if passes is None else passes
        assert ran == (2 if passes is None else 3)  # the first step cannot have moved away from its own policy
        tokens = ran * int(record.rollouts[0].response_mask.sum())
        assert metrics["throughput/update_tokens_per_s"] == pytest.approx(tokens / seconds[-1])


def test_16_mixed_is_refused_in_one_line(actor: Path, tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"trainer\.precision 16-mixed is not supported: use bf16-mixed") as refusal:
        fit(tmp_path, ppo(actor), 1, plugins=[plugin])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("own", [None, "<|endoftext|>", "<|pad|>"])
def test_export_keeps_the_tokenizers_own_pad_token(actor: Path, tmp_path: Path, own: str | None) -> None:
    copied = tmp_path / "actor"
    shutil.copytree(actor, copied)
    tokenizer = AutoTokenizer.from_pretrained(actor)
    tokenizer.pad_token = own
    tokenizer.save_pretrained(copied)
    module = ppo(copied)
    fit(tmp_path, module, 1)
    assert module.tokenizer.pad_token_id != module.tokenizer.eos_token_id
    exported = AutoTokenizer.from_pretrained(module.export(tmp_path / "out"))
    assert exported.pad_token == own
    assert exported.get_vocab() == tokenizer.get_vocab()
    assert module.tokenizer.pad_token not in (None, module.tokenizer.eos_token)


@pytest.mark.parametrize("rule", ["none", "penalty", "mask"])
def test_missing_eos(actor: Path, tmp_path: Path, rule: str) -> None:
    settings = PPOConfig(missing_eos=rule, missing_eos_penalty=5.0, whiten_advantages=False)  # type: ignore[arg-type]
    _, record = fit(tmp_path, ppo(actor, ppo=settings, kl=KLConfig(placement="none")), 1)
    rollout = record.rollouts[0]
    assert not rollout.finished.all()
    cut = ~rollout.finished
    first = rollout.returns[:, 0]
    # the critic starts at 0, so with gamma 1 the return at the first token is GAE's sum of decayed rewards
    if rule == "mask":
        assert (rollout.advantages[cut] == 0).all()
        assert record.metrics[0]["rollout/left_out"] == pytest.approx(float(cut.float().mean()))
        return
    lengths = rollout.response_mask.sum(-1).tolist()
    plain = [
        sum(0.95**t * float(reward) for t, reward in enumerate(rewards[:length]))
        for rewards, length in zip(rollout.token_rewards, lengths, strict=True)
    ]
    charge = 5.0 if rule == "penalty" else 0.0
    charged = [charge * 0.95 ** (length - 1) * float(c) for length, c in zip(lengths, cut, strict=True)]
    assert torch.allclose(first, torch.tensor(plain) - torch.tensor(charged), atol=1e-4)
    assert record.metrics[0]["rollout/left_out"] == 0


def test_tensor_parallelism_is_refused(actor: Path) -> None:
    module = ppo(actor)
    sizes = {"data_parallel": 1, "tensor_parallel": 2}
    module._device_mesh = {name: SimpleNamespace(size=lambda n=n: n) for name, n in sizes.items()}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="tensor_parallel_size must be 1: "):
        module.configure_model()
    assert module.policy is None


def test_a_cut_training_prompt_counts_once(actor: Path, tmp_path: Path) -> None:
    """Not once a sample, and validation's prompts, which are as long, not at all."""
    module = ppo(actor, generation=GenerationConfig(max_prompt_length=1, max_new_tokens=4, samples_per_prompt=3))
    validation = {"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 1}
    _, record = fit(tmp_path, module, 2, **validation)
    assert [m["rollout/overlong_prompts"] for m in record.metrics] == [8.0, 16.0]


def test_a_run_without_rewards_is_refused(actor: Path, tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(ValueError, match="RewardComputation"):
        trainer.fit(ppo(actor), datamodule=TextData(batch_size=8, size=20))


class Unheard(L.Callback):
    """A hook of rollouts on a class that they do not call."""

    def on_update_end(self, *_: Any) -> None:
        raise AssertionError("never called")


def test_a_plain_callback_with_a_hook_of_rollouts_is_refused_by_name(actor: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"Unheard.*on_update_end.*lightning_dterm\.hooks\.RolloutCallback"
    ):
        tiny_fit(tmp_path, tiny_ppo(actor), components(), 1, TextData(batch_size=8, size=20), callbacks=[Unheard()])
