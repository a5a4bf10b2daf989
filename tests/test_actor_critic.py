"""Actor, reference and critic against plain transformers forwards, one un-padded row at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lightning_dterm.init_actor import train_tokenizer
from lightning_dterm.modules.actor_critic import ActorCritic, CriticConfig, LoraSettings
from lightning_dterm.modules.loading import ActorConfig, ActorLoadError, fingerprint, load_causal_lm, load_tokenizer
from lightning_dterm.rl.generation import generate, sample_uniforms

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16], [40, 41]]


def save_model(folder: Path, family: str = "qwen2") -> Path:
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"], 280)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    torch.manual_seed(3)
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True, attention_dropout=0.5))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False, attention_dropout=0.5))
    with torch.no_grad():  # peaked distributions: a uniform one would hide mistakes
        model.get_output_embeddings().weight.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def path(request, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    return save_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def rollout(policy: ActorCritic, temperature: float, limit: int = 12):  # type: ignore[no-untyped-def]
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[1] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    uniforms = sample_uniforms([("test", i) for i in range(len(PROMPTS))], limit)
    # many tokens end a response, so that lengths differ
    ends = list(range(0, 280, 9))
    return (
        ids,
        mask,
        generate(policy.language_model, ids, mask, uniforms, eos_ids=ends, pad_id=1, temperature=temperature),
    )


def row_by_row(model, responses, temperature: float) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    """The oracle: each row alone, without padding or cache, by log_softmax of the full logits."""
    rows = []
    for prompt, ids, mask in zip(PROMPTS, responses.ids, responses.mask, strict=True):
        response = ids[mask.bool()]
        full = torch.cat([torch.tensor(prompt), response])[None]
        with torch.no_grad():
            logprobs = (model(input_ids=full).logits[0] / temperature).log_softmax(-1)
        rows.append(logprobs[len(prompt) - 1 : -1].gather(-1, response[:, None]).squeeze(-1))
    return rows


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_training_logprobs_are_those_of_generation(path: Path, temperature: float) -> None:
    policy = ActorCritic(ActorConfig(path=str(path)), CriticConfig())
    ids, mask, responses = rollout(policy, temperature)
    assert len(set(responses.mask.sum(-1).tolist())) > 1
    scores = policy(ids, mask, responses.ids, responses.mask, actor=True, reference=True, temperature=temperature)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    for row, expected in enumerate(row_by_row(model, responses, temperature)):
        inside = responses.mask[row].bool()
        assert torch.allclose(scores.logprobs[row][inside], expected, atol=1e-4, rtol=0)
        assert torch.allclose(scores.ref_logprobs[row][inside], expected, atol=1e-4, rtol=0)
        assert (scores.logprobs[row][~inside] == 0).all()
        assert (scores.entropy[row][~inside] == 0).all()


def test_results_do_not_depend_on_padding_or_batch(path: Path) -> None:
    policy = ActorCritic(ActorConfig(path=str(path)), CriticConfig())
    ids, mask, responses = rollout(policy, 1.0)
    torch.nn.init.normal_(policy.value_head.weight)
    both = policy(ids, mask, responses.ids, responses.mask, actor=True, critic=True)
    wide = [torch.nn.functional.pad(x, (0, 5), value=fill) for x, fill in ((responses.ids, 1), (responses.mask, 0))]
    padded = policy(ids, mask, *wide, actor=True, critic=True)
    alone = policy(ids[1:2], mask[1:2], responses.ids[1:2], responses.mask[1:2], actor=True, critic=True)
    assert padded.logprobs.shape == wide[0].shape
    for name in ("logprobs", "values"):
        assert torch.allclose(getattr(padded, name)[:, :-5], getattr(both, name), atol=1e-5)
        assert torch.allclose(getattr(alone, name), getattr(both, name)[1:2], atol=1e-5)


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_values_are_those_of_the_state_before_each_token(path: Path, kind: str) -> None:
    policy = ActorCritic(ActorConfig(path=str(path)), CriticConfig(kind=kind))  # type: ignore[arg-type]
    torch.nn.init.normal_(policy.value_head.weight)
    ids, mask, responses = rollout(policy, 1.0)
    values = policy(ids, mask, responses.ids, responses.mask, critic=True).values
    trunk = AutoModelForCausalLM.from_pretrained(path).eval().base_model
    for row, prompt in enumerate(PROMPTS):
        response = responses.ids[row][responses.mask[row].bool()]
        full = torch.cat([torch.tensor(prompt), response])[None]
        hidden = trunk(input_ids=full).last_hidden_state[0, len(prompt) - 1 : -1]
        expected = hidden @ policy.value_head.weight[0] + policy.value_head.bias
        assert torch.allclose(values[row, : len(response)], expected, atol=1e-4)


def perturb_adapter(policy: ActorCritic, adapter: str) -> None:
    with torch.no_grad():
        for name, parameter in policy.actor.named_parameters():
            if f"lora_B.{adapter}" in name:
                parameter.normal_(std=0.5)


def test_one_base_serves_actor_reference_and_critic(path: Path) -> None:
    policy = ActorCritic(ActorConfig(path=str(path)), CriticConfig(kind="adapter"), LoraSettings(rank=4))
    torch.nn.init.normal_(policy.value_head.weight)
    ids, mask, responses = rollout(policy, 1.0)
    args = (ids, mask, responses.ids, responses.mask)
    before = policy(*args, actor=True, reference=True, critic=True)
    assert torch.allclose(before.logprobs, before.ref_logprobs, atol=1e-6)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}

    perturb_adapter(policy, "actor")
    moved = policy(*args, actor=True, reference=True, critic=True)
    assert not torch.allclose(moved.logprobs, before.logprobs, atol=1e-2)
    assert torch.equal(moved.ref_logprobs, before.ref_logprobs)
    assert torch.equal(moved.values, before.values)

    perturb_adapter(policy, "critic")
    critic_moved = policy(*args, actor=True, reference=True, critic=True)
    assert not torch.allclose(critic_moved.values, before.values, atol=1e-3)
    assert torch.equal(critic_moved.logprobs, moved.logprobs)
    assert torch.equal(critic_moved.ref_logprobs, before.ref_logprobs)

    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trained
    assert trained == {n for n in dict(policy.named_parameters()) if "lora_" in n or "value_head" in n}
    (critic_moved.logprobs.sum() + critic_moved.values.sum()).backward()
    with_gradient = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("lora_A.actor" in n for n in with_gradient)
    assert any("lora_A.critic" in n for n in with_gradient)
    assert with_gradient <= trained


def test_lora_gradients_reach_the_right_adapter(path: Path) -> None:
    policy = ActorCritic(ActorConfig(path=str(path)), CriticConfig(kind="adapter"), LoraSettings(rank=4))
    torch.nn.init.normal_(policy.value_head.weight)
    perturb_adapter(policy, "critic")
    ids, mask, responses = rollout(policy, 1.0)
    policy(ids, mask, responses.ids, responses.mask, critic=True).values.sum().backward()
    touched = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched
    assert not any(".actor." in name and "lora" in name for name in touched)


def test_gradient_checkpointing_changes_nothing(path: Path) -> None:
    gradients = []
    ids, mask, responses = rollout(ActorCritic(ActorConfig(path=str(path)), CriticConfig(kind="shared")), 1.0)
    for checkpointing in (False, True):
        config = ActorConfig(path=str(path), gradient_checkpointing=checkpointing)
        policy = ActorCritic(config, CriticConfig(kind="shared"))
        assert policy.training == checkpointing
        scores = policy(ids, mask, responses.ids, responses.mask, actor=True, critic=True)
        (scores.logprobs.sum() + scores.values.square().sum()).backward()
        gradients.append([p.grad.clone() for p in policy.actor_parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_generation_is_the_same_with_gradient_checkpointing(path: Path) -> None:
    """In training mode, where transformers would drop the key-value cache of a checkpointed model."""
    texts = []
    ids, mask, _ = rollout(ActorCritic(ActorConfig(path=str(path)), CriticConfig(kind="shared")), 1.0)
    for checkpointing in (False, True):
        config = ActorConfig(path=str(path), gradient_checkpointing=checkpointing)
        policy = ActorCritic(config, CriticConfig(kind="shared"))
        uniforms = sample_uniforms([("check", i) for i in range(len(PROMPTS))], 10)
        responses = policy.generate(ids, mask, uniforms, eos_ids=[0], pad_id=1, temperature=1.0)
        texts.append(responses.ids.tolist())
        assert policy.training == checkpointing
    assert texts[0] == texts[1]


def test_fingerprint_of_a_tensor_of_more_than_2_to_the_24_entries() -> None:
    module = torch.nn.Module()
    module.register_buffer("large", torch.zeros(1).expand(136_134_656))
    assert len(fingerprint(module)) == 16


def test_empty_rows_still_reach_every_parameter(path: Path) -> None:
    policy = ActorCritic(ActorConfig(path=str(path)), CriticConfig(kind="shared"))
    ids = torch.tensor([[5, 6]])
    nothing = torch.zeros(1, 3, dtype=torch.long)
    scores = policy(ids, torch.ones_like(ids), nothing + 1, nothing, actor=True, critic=True)
    (scores.logprobs.sum() + scores.values.sum()).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in policy.actor_parameters())


def test_bad_settings_name_the_culprit(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs LoRA"):
        ActorCritic(ActorConfig(path=str(path)), CriticConfig(kind="adapter"))
    config = ActorConfig(path=str(path), gradient_checkpointing=True)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        ActorCritic(config, CriticConfig(kind="adapter"), LoraSettings())
    with pytest.raises(ValueError, match="bf16-mixed"):
        ActorCritic(ActorConfig(path=str(path), dtype="bfloat16"), CriticConfig())
    with pytest.raises(ActorLoadError, match="no/such/place"):
        load_causal_lm(ActorConfig(path="no/such/place"))
    with pytest.raises(ActorLoadError, match="package:nothing"):
        load_tokenizer("package:nothing")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ActorLoadError, match=str(tmp_path)):
        load_causal_lm(ActorConfig(path=str(tmp_path)))


def test_pad_is_never_eos(path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(path))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id != loaded.eos_token_id
    assert loaded.padding_side == "left"
