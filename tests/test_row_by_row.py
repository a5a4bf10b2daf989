"""Models without a usable cache, without padding or with logits of their own: run one row at a time, exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_dterm.init_actor import train_tokenizer
from lightning_dterm.modules import ppo, supervised
from lightning_dterm.modules.actor_critic import ActorCritic, CriticConfig, LoraSettings
from lightning_dterm.modules.agreement import choose_route
from lightning_dterm.modules.config import GenerationConfig, PPOConfig
from lightning_dterm.modules.export import export_model
from lightning_dterm.modules.forward import BATCHED, ROW_BY_ROW
from lightning_dterm.modules.loading import ActorConfig, ActorLoadError
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.rl.generation import RowDecoding, generate, sample_uniforms
from tests.test_distributed import assert_same_metrics, assert_same_weights, launch
from tests.test_logit_transforms import assert_close_gradients, batch, gradients, own_logprobs
from tests.tiny import ScoreOf, TextData, tiny_actor, tiny_fit

VOCABULARY = 280
ENDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": 0, "pad_token_id": 1}
SMALL: dict[str, Any] = {**ENDS, "hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {**SMALL, "num_attention_heads": 4, "intermediate_size": 64}
GEMMA: dict[str, Any] = {**HEADS, "num_hidden_layers": 3, "num_key_value_heads": 2, "lru_width": 32}
MODERN: dict[str, Any] = {**HEADS, "cls_token_id": 2, "sep_token_id": 0, "local_attention": 4}
ELECTRA: dict[str, Any] = {**HEADS, "embedding_size": 16, "is_decoder": True}
# class, settings, what the warning says
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "states inside its layers": ("RecurrentGemma", GEMMA, "keeps no cache to decode with"),
    "no cache": ("Rwkv", {**SMALL, "attention_hidden_size": 32, "rescale_every": 1}, "keeps no cache to decode with"),
    "padding is text": ("xLSTM", {**SMALL, "hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0}, "differ by"),
    "dense before the projection": ("ModernBertDecoder", MODERN, "in a way not known here"),
    "a narrower projection": ("Electra", ELECTRA, "shapes cannot be multiplied"),
}


def build(family: str) -> PreTrainedModel:
    name, settings, _ = FAMILIES[family]
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(tf, f"{name}ForCausalLM")(getattr(tf, f"{name}Config")(**settings)).eval()
    with torch.no_grad():  # peaked distributions: a uniform one would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def saved(family: str, folder: Path) -> Path:
    build(family).save_pretrained(folder)
    return folder


def policy_of(path: Path, kind: str = "shared", lora: LoraSettings | None = None) -> ActorCritic:
    with pytest.warns(UserWarning, match="rollouts and updates will be slow"):
        policy = ActorCritic(ActorConfig(str(path)), CriticConfig(kind), lora)  # type: ignore[arg-type]
    assert policy.route is ROW_BY_ROW
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


def prompts() -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, VOCABULARY, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) >= torch.tensor([5, 2, 0, 7, 8, 0])[:, None]).long()
    return ids.masked_fill(mask == 0, 1), mask


class Noting(RowDecoding):
    """Keeps what it gave: rows and logits of every step."""

    steps: list[tuple[Tensor, Tensor]]

    def next_logits(self, model: torch.nn.Module) -> Tensor:
        logits = super().next_logits(model)
        type(self).steps.append((self.rows, logits))
        return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_scored_as_by_a_plain_forward(family: str, tmp_path: Path) -> None:
    policy = policy_of(saved(family, tmp_path))
    policy.route, Noting.steps = policy.route._replace(decoding=Noting), []
    ids, mask = prompts()
    uniforms = sample_uniforms([(row,) for row in range(6)], 14)
    ends = list(range(0, VOCABULARY, 5))
    out = policy.generate(ids, mask, uniforms, eos_ids=ends, pad_id=1, temperature=2.0)
    assert len({int(length) for length in out.mask.sum(-1)}) > 2, "the case must mix lengths"
    generated = torch.zeros(out.ids.shape)
    for step, (rows, logits) in enumerate(Noting.steps):
        chosen = out.ids[rows, step, None]
        generated[rows, step] = (logits / 2.0).log_softmax(-1).gather(-1, chosen).squeeze(-1)
    with torch.no_grad():
        scores = policy(ids, mask, out.ids, out.mask, actor=True, reference=True, critic=True, temperature=2.0)
    assert (scores.values[out.mask.bool()] != 0).all()
    model = build(family)
    for row in range(6):
        prompt, response = ids[row][mask[row].bool()], out.ids[row][out.mask[row].bool()]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        plain = (logits.float() / 2.0).log_softmax(-1).gather(-1, response[:, None]).squeeze(-1)
        for ours in (generated, scores.logprobs, scores.ref_logprobs):
            assert float((ours[row, : len(response)] - plain).abs().max()) < 1e-4
            assert not ours[row, len(response) :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_by_the_models_own_logits_and_says_why_slowly(family: str, tmp_path: Path) -> None:
    name, _, reason = FAMILIES[family]
    with pytest.warns(UserWarning, match="slow") as said:
        policy = ActorCritic(ActorConfig(str(saved(family, tmp_path))), CriticConfig("shared"))
    slow = [str(warning.message) for warning in said if "slow" in str(warning.message)]
    assert len(slow) == 1
    assert slow[0].startswith(f"{name}ForCausalLM: ")
    assert reason in slow[0]
    model = build(family)
    model.config.rescale_every = 0  # RWKV's: halves what later divides, and so the gradients by its weights
    torch.nn.init.normal_(policy.value_head.weight)
    weights = torch.tensor([[1.0, -2.0, 0.0], [0.5, 1.5, -1.0]])
    scores = policy(*batch(), actor=True, critic=True, temperature=0.7)
    (scores.logprobs * weights).sum().backward()
    ours = gradients(policy.language_model)
    sum((row * weights[i, : len(row)]).sum() for i, row in enumerate(own_logprobs(model, 0.7))).backward()  # type: ignore[union-attr]
    assert_close_gradients(ours, gradients(model))
    with torch.no_grad():
        states = model.base_model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 20, 31]])).last_hidden_state[0, 4:-1]
    values = states @ policy.value_head.weight[0] + policy.value_head.bias
    assert torch.allclose(scores.values[0, :2], values, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "kind"), [("dense before the projection", "adapter"), ("no cache", "separate"), ("no cache", "adapter")]
)
def test_the_reference_has_no_adapter(family: str, kind: str, tmp_path: Path) -> None:
    policy = policy_of(saved(family, tmp_path), kind, LoraSettings(rank=2))
    with torch.no_grad():
        for name, parameter in policy.actor.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    scores = policy(*batch(), actor=True, reference=True, critic=True)
    kept = batch()[3].bool()
    assert torch.allclose(scores.ref_logprobs[kept], torch.cat(own_logprobs(build(family), 1.0)), atol=1e-4)
    assert torch.allclose(scores.logprobs[kept], torch.cat(own_logprobs(policy.language_model, 1.0)), atol=1e-5)
    assert float((scores.logprobs - scores.ref_logprobs).detach().abs().max()) > 0.1
    (scores.logprobs.sum() + scores.values.sum()).backward()
    # data-parallel training waits for the gradient of everything that trains
    idle = [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@pytest.mark.parametrize(
    ("family", "lora"), [("states inside its layers", LoraSettings(rank=2)), ("no cache", None)], ids=["lora", "whole"]
)
def test_a_ppo_iteration_and_its_export(family: str, lora: LoraSettings | None, tmp_path: Path) -> None:
    path = saved(family, tmp_path / "actor")
    train_tokenizer(["def f(x):\n    return x + 1\n", "print('abc')\n"], VOCABULARY).save_pretrained(path)
    module = PPOModule(
        actor=ActorConfig(str(path)),
        critic=CriticConfig("shared"),
        lora=lora,
        generation=GenerationConfig(max_prompt_length=8, max_new_tokens=4, samples_per_prompt=2, temperature=3.0),
        ppo=PPOConfig(epochs=2, minibatches=1),
    )
    tiny_fit(
        tmp_path,
        module,
        [ScoreOf("letters", lambda text: sum(map(ord, text)) % 7 / 7)],
        1,
        TextData(batch_size=4, size=4),
    )
    export_model(module.policy.actor, tmp_path / "export", True, module.actor_config, lora, module.critic_config)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        trained = module.language_model(input_ids=ids).logits.log_softmax(-1)
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()(input_ids=ids).logits
        before = build(family)(input_ids=ids).logits.log_softmax(-1)
    assert torch.allclose(trained, exported.log_softmax(-1), atol=1e-4)
    assert float((trained - before).abs().max()) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_warm_start_too(family: str, tmp_path: Path) -> None:
    path = saved(family, tmp_path)
    train_tokenizer(["def f(x):\n    return x + 1\n"], VOCABULARY).save_pretrained(path)
    module = SupervisedModule(ActorConfig(str(path)), GenerationConfig(16, 8))
    with pytest.warns(UserWarning, match="slow"):
        module.configure_model()
    rows = [[5, 6, 7, 8, 9], [10, 11, 12]]
    ids, mask = torch.tensor([rows[0], [*rows[1], 1, 1]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    loss = module.loss_sum(ids, mask, torch.tensor([[0.0, 0, 1, 1, 1], [0, 0.5, 1, 0, 0]]))
    tables = [build(family)(input_ids=torch.tensor([row])).logits[0].log_softmax(-1) for row in rows]
    own = [tables[0][i, rows[0][i + 1]] for i in (1, 2, 3)]
    own += [0.5 * tables[1][0, rows[1][1]], tables[1][1, rows[1][2]]]
    assert float(loss.detach()) == pytest.approx(-float(sum(own)), rel=1e-5)
    uniforms = torch.full((1, 4), 0.5)
    out = module.generate_responses(ids[:1], mask[:1], uniforms, eos_ids=[0], pad_id=1, temperature=0.0)
    text = ids[:1]
    for token in out.ids[0]:
        assert int(token) == int(build(family)(input_ids=text).logits[0, -1].argmax())
        text = torch.cat([text, token.reshape(1, 1)], dim=1)


def test_a_model_with_batches_and_cache_never_takes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("row by row")

    monkeypatch.setattr(RowDecoding, "__init__", never)
    monkeypatch.setattr("lightning_dterm.modules.forward._rows", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = ActorCritic(ActorConfig(str(tiny_actor(tmp_path))), CriticConfig("separate"))
    assert policy.route is BATCHED
    ids, mask = prompts()
    uniforms = sample_uniforms([(row,) for row in range(6)], 5)
    settings: dict[str, Any] = {"eos_ids": [0], "pad_id": 1, "temperature": 1.0}
    out = policy.generate(ids, mask, uniforms, **settings)
    assert torch.equal(out.ids, generate(policy.language_model, ids, mask, uniforms, **settings).ids)
    policy(ids, mask, out.ids, out.mask, actor=True, reference=True, critic=True)


def by_chance(_model: Any, _args: Any, output: Any) -> Any:
    output.logits = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(len(CALLS)))
    CALLS.append(1)
    return output


def by_place(_model: Any, _args: Any, output: Any) -> Any:
    """The second row of a batch is told otherwise than the first."""
    place = torch.arange(len(output.logits))[:, None, None]
    output.logits = output.logits * (1 + place)
    return output


def by_the_call_before(_model: Any, _args: Any, output: Any) -> Any:
    own = output.logits[:, -1:].clone()
    output.logits = output.logits + (CALLS[-1] if CALLS else 0)
    CALLS.append(own[:1])
    return output


CALLS: list[Any] = []


@pytest.mark.parametrize("broken", [by_chance, by_place, by_the_call_before])
@pytest.mark.parametrize("family", ["no cache", "dense before the projection"])
def test_a_broken_model_is_refused(family: str, broken: Callable[..., Any]) -> None:
    model = build(family)
    CALLS.clear()
    with pytest.warns(UserWarning, match="slow"):
        assert choose_route(model) is ROW_BY_ROW
    model.register_forward_hook(broken)
    says = (
        rf"^{type(model).__name__} cannot be trained here: .*; one row at a time without a cache the log-prob.* differ"
    )
    with pytest.raises(ActorLoadError, match=says):
        choose_route(model)


def test_a_model_that_reads_what_comes_is_refused() -> None:
    torch.manual_seed(0)
    model = tf.BertLMHeadModel(tf.BertConfig(**HEADS)).eval()
    for layer in model.bert.encoder.layer:
        layer.attention.self.value.weight.data.mul_(30)
    with pytest.raises(ActorLoadError, match=r"^BertLMHeadModel cannot be trained here"):
        choose_route(model)


@pytest.mark.parametrize("make", [PPOModule, SupervisedModule])
def test_sharded_weights_are_refused_in_one_line(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved("no cache", tmp_path)
    train_tokenizer(["def f(x):\n    return x + 1\n"], VOCABULARY).save_pretrained(path)
    for module in (ppo, supervised):
        monkeypatch.setattr(module, "data_parallel_mesh", lambda _: object())
    says = r"^RwkvForCausalLM can only be run one row at a time, because .*no cache.*: use --trainer.strategy ddp"
    with pytest.raises(ActorLoadError, match=says) as refusal:
        make(actor=ActorConfig(str(path))).configure_model()
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"critic": "adapter", "lora": True}, {"critic": "separate"}, {"supervised": True}])
def test_two_processes_equal_one(options: dict[str, Any], tmp_path: Path) -> None:
    path = saved("dense before the projection", tmp_path / "actor")
    train_tokenizer(["def f(x):\n    return x + 1\n", "print('abc')\n"], VOCABULARY).save_pretrained(path)
    one = launch(tmp_path / "one", path, steps=2, **options)[0]
    for rank in launch(tmp_path / "two", path, 2, "ddp", steps=2, **options):
        assert_same_weights(one, rank, 1e-4)
        assert_same_metrics(one, rank, 1e-4)
