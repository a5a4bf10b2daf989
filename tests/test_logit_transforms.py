"""Models that scale, cap or cut their logits: scored and trained as their own forward does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.init_actor import train_tokenizer
from lightning_dterm.modules.actor_critic import ActorCritic, CriticConfig, LoraSettings
from lightning_dterm.modules.agreement import choose_route
from lightning_dterm.modules.config import GenerationConfig, PPOConfig
from lightning_dterm.modules.forward import BATCHED, ROW_BY_ROW
from lightning_dterm.modules.head import LogitTransform, logits_head
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.rl.logprobs import token_logprobs
from lightning_dterm.types import Rollout
from tests.test_distributed import assert_same_metrics, assert_same_weights, launch
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_trainer

VOCABULARY = 280
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
HEADS: dict[str, Any] = {**SHAPE, "head_dim": 8}
KINDS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
ROPE: dict[str, Any] = {
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]} for kind in KINDS["layer_types"]
    }
}
GEMMA3N: dict[str, Any] = {
    **HEADS,
    **KINDS,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0, 0.0],
}
GEMMA4: dict[str, Any] = {**HEADS, **KINDS, "global_head_dim": 8}
EXPERTS: dict[str, Any] = {**SHAPE, "num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 16}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
MIXTURE: dict[str, Any] = {**HEADS, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
INKLING: dict[str, Any] = {
    **MIXTURE,
    "n_routed_experts": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 32,
    "unpadded_vocab_size": 270,
}
CAP = {"final_logit_softcapping": 3.0}
# model class, configuration class, configuration
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", "Gemma2", {**HEADS, **CAP}),
    "gemma3": ("Gemma3", "Gemma3Text", {**HEADS, **CAP}),
    "gemma3n": ("Gemma3n", "Gemma3nText", {**GEMMA3N, **CAP}),
    "gemma4": ("Gemma4", "Gemma4Text", {**GEMMA4, **CAP, "hidden_size_per_layer_input": 0}),
    "gemma4_unified": ("Gemma4Unified", "Gemma4UnifiedText", {**GEMMA4, **CAP}),
    "vaultgemma": ("VaultGemma", "VaultGemma", {**HEADS, **CAP}),
    "nanochat": ("NanoChat", "NanoChat", {**SHAPE, **CAP}),
    "beam": ("Beam", "Beam", {**MIXTURE, **CAP, "num_experts": 4, "n_group": 1, "topk_group": 1}),
    "inkling2": ("Inkling2", "Inkling2Text", {**INKLING, **CAP}),
    "inkling": ("Inkling", "InklingText", {**INKLING, "logits_mup_width_multiplier": 3.0}),
    "minicpm3": ("MiniCPM3", "MiniCPM3", {**SHAPE, **LATENT, "dim_model_base": 8}),
    "cohere": ("Cohere", "Cohere", {**SHAPE, "logit_scale": 0.3}),
    "cohere2": ("Cohere2", "Cohere2", {**SHAPE, "logit_scale": 0.3}),
    "cohere2_moe": ("Cohere2Moe", "Cohere2Moe", {**MIXTURE, "num_experts": 4, "logit_scale": 0.3}),
    "cohere_compass": ("CohereCompass", "CohereCompassText", {**SHAPE, **ROPE, "logit_scale": 0.3}),
    "hyperclovax": ("HyperCLOVAX", "HyperCLOVAX", {**SHAPE, "logits_scaling": 0.3}),
    "falcon_h1": ("FalconH1", "FalconH1", {**SHAPE, **MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.3}),
    "granite": ("Granite", "Granite", {**SHAPE, "logits_scaling": 3.0}),
    "granite_swa": ("GraniteSWA", "GraniteSWA", {**SHAPE, "logits_scaling": 3.0}),
    "granitemoe": ("GraniteMoe", "GraniteMoe", {**EXPERTS, "logits_scaling": 3.0}),
    "granitemoe_swa": ("GraniteMoeSWA", "GraniteMoeSWA", {**EXPERTS, "logits_scaling": 3.0}),
    "granitemoeshared": ("GraniteMoeShared", "GraniteMoeShared", {**EXPERTS, "logits_scaling": 3.0}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        "GraniteMoeHybrid",
        {**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"], "logits_scaling": 3.0},
    ),
}
# newer than the oldest transformers that is supported
INSTALLED = [name for name, (model, _, _) in FAMILIES.items() if hasattr(tf, f"{model}ForCausalLM")]
PROMPTS = [[5, 6, 7, 8, 9], [11, 12]]
RESPONSES = [[20, 31], [42, 53, 64]]


def build(family: str) -> PreTrainedModel:
    model_class, config_class, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(tf, f"{config_class}Config")(**settings)
    model: PreTrainedModel = getattr(tf, f"{model_class}ForCausalLM")(config).eval()
    with torch.no_grad():  # logits of about 10, which a cap of 3 bends: small ones would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
        # drawn as zeros, which no trained model has there: Gemma 3n's gradient is infinite at them
        torch.nn.init.normal_(model.get_input_embeddings().weight[1])
    return model


def policy_of(
    model: PreTrainedModel, folder: Path, kind: str = "shared", lora: LoraSettings | None = None
) -> ActorCritic:
    model.save_pretrained(folder)
    policy = ActorCritic(ActorConfig(str(folder)), CriticConfig(kind), lora)  # type: ignore[arg-type]
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two rows, the second padded by three on the left, the first by one on the right."""
    prompts = torch.tensor([PROMPTS[0], [1, 1, 1, *PROMPTS[1]]])
    responses = torch.tensor([[*RESPONSES[0], 1], RESPONSES[1]])
    return prompts, (prompts != 1).long(), responses, (responses != 1).long()


def own_logprobs(model: torch.nn.Module, temperature: float) -> list[Tensor]:
    """The oracle: each row alone and unpadded, by log_softmax of the logits that the model's own forward returns."""
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        table = (logits.float() / temperature).log_softmax(-1)
        rows.append(torch.stack([table[i, token] for i, token in enumerate(response)]))
    return rows


def assert_close_gradients(ours: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    assert ours.keys() == own.keys()
    largest = max(float(gradient.abs().max()) for gradient in own.values())
    assert largest > 0.1
    for name, gradient in own.items():
        assert float((ours[name] - gradient).abs().max()) < 3e-5 * largest, name


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", INSTALLED)
def test_training_scores_and_learns_by_the_models_own_logits(family: str, tmp_path: Path) -> None:
    model = build(family)
    policy = policy_of(model, tmp_path)
    scores = policy(*batch(), actor=True, reference=True, critic=True, temperature=0.7)
    own = own_logprobs(model, 0.7)
    for row, expected in enumerate(own):
        for ours in (scores.logprobs, scores.ref_logprobs):
            assert torch.allclose(ours[row, : len(expected)], expected, atol=1e-5, rtol=0)
    weights = torch.tensor([[1.0, -2.0, 0.0], [0.5, 1.5, -1.0]])
    (scores.logprobs * weights).sum().backward()
    sum((row * weights[i, : len(row)]).sum() for i, row in enumerate(own)).backward()  # type: ignore[union-attr]
    assert_close_gradients(gradients(policy.language_model), gradients(model))
    with torch.no_grad():
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            states = model.base_model(input_ids=torch.tensor([prompt + response]), use_cache=False).last_hidden_state
            values = states[0, len(prompt) - 1 : -1] @ policy.value_head.weight[0] + policy.value_head.bias
            assert torch.allclose(scores.values[row, : len(response)], values, atol=1e-4)


@pytest.mark.parametrize("family", INSTALLED)
def test_logits_are_equal_to_the_last_bit_in_bfloat16(family: str) -> None:
    model, ids = build(family), torch.tensor(PROMPTS[:1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own = model(input_ids=ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours, plain = logits_head(model)(hidden), model.get_output_embeddings()(hidden)
    assert plain.dtype == torch.bfloat16
    assert ours.dtype == own.dtype
    assert torch.equal(ours, own)
    assert plain.shape != own.shape or float((plain - own).abs().max()) > 0.1, "the case must change the logits"


def test_gradients_with_chunks_and_the_models_own_entropy() -> None:
    """The cap is recomputed in the backward pass, chunk by chunk, and the entropy is that of the capped logits."""
    model, ids = build("gemma2"), torch.arange(2, 22)[None]
    labels = torch.arange(30, 50)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    logprobs, entropy = token_logprobs(logits_head(model), hidden, labels, 0.7, chunk_tokens=3, entropy_gradient=True)
    (logprobs.sum() - 2 * entropy.sum()).backward()
    ours = gradients(model)
    model.zero_grad()
    own = torch.distributions.Categorical(logits=model(input_ids=ids, use_cache=False).logits[0] / 0.7)
    assert torch.allclose(entropy, own.entropy(), atol=1e-5)
    (own.log_prob(labels).sum() - 2 * own.entropy().sum()).backward()
    assert_close_gradients(ours, gradients(model))


@pytest.mark.parametrize(
    ("family", "adapted", "kind"),
    [("gemma2", "lm_head", "adapter"), ("granite", "lm_head", "shared"), ("cohere", "q_proj", "separate")],
)
def test_lora_and_every_critic(family: str, adapted: str, kind: str, tmp_path: Path) -> None:
    """``adapted`` beside v_proj: the projection to logits itself, or not; the reference has no adapter."""
    model = build(family)
    policy = policy_of(model, tmp_path, kind, LoraSettings(rank=4, target_modules=["v_proj", "o_proj", adapted]))
    with torch.no_grad():
        for name, parameter in policy.actor.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    scores = policy(*batch(), actor=True, reference=True, critic=True)
    own, plain = own_logprobs(policy.language_model, 1.0), own_logprobs(model, 1.0)
    states = batch()[3].bool()
    assert torch.allclose(scores.logprobs[states], torch.cat(own), atol=1e-5)
    assert torch.allclose(scores.ref_logprobs[states], torch.cat(plain), atol=1e-5)
    assert float((scores.logprobs - scores.ref_logprobs).abs().max()) > 0.1
    scores.logprobs.sum().backward()
    ours = gradients(policy.language_model)
    assert any("lm_head" in name for name in ours) == (adapted == "lm_head")
    policy.zero_grad()
    sum(row.sum() for row in own).backward()  # type: ignore[union-attr]
    assert_close_gradients(ours, gradients(policy.language_model))
    assert (scores.values[states] != 0).all()
    policy.zero_grad()
    policy(*batch(), critic=True).values.sum().backward()
    assert not any("lm_head" in name for name in gradients(policy)), "values come from hidden states alone"


def actor(folder: Path, family: str) -> Path:
    tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n", "print('abc')\n"], VOCABULARY)
    build(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_ppo_iteration(tmp_path: Path) -> None:
    """What the rollout keeps, and so the update's ratios, is by the model's own logits at the sampling temperature."""
    path = actor(tmp_path / "actor", "gemma2")
    module = PPOModule(
        actor=ActorConfig(str(path)),
        critic=CriticConfig("shared"),
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=8, samples_per_prompt=2, temperature=0.7),
        ppo=PPOConfig(epochs=2, minibatches=1),
    )
    kept: list[Rollout] = []

    class Record(RolloutCallback):
        def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
            kept.append(rollout)

    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1, callbacks=[Record()])
    trainer.fit(module, datamodule=TextData(batch_size=8, size=8))
    model, rollout = build("gemma2"), kept[0]
    assert rollout.logprobs is not None
    for row in range(16):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
        response = rollout.response_ids[row][rollout.response_mask[row].bool()]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, response[:, None]).squeeze(-1)
        assert torch.allclose(rollout.logprobs[row, : len(response)], expected, atol=1e-5)
    assert rollout.metrics["ppo/steps"] == 2
    assert 0 < abs(rollout.metrics["ppo/approx_kl"]) < 0.1
    before, after = model.state_dict(), module.policy.language_model.state_dict()
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [{"critic": "separate"}, {"critic": "adapter", "lora": True}, {"supervised": True}])
def test_two_processes_equal_one(options: dict[str, Any], strategy: str, tmp_path: Path) -> None:
    path = actor(tmp_path / "actor", "gemma2")
    one = launch(tmp_path / "one", path, steps=2, **options)[0]
    for rank in launch(tmp_path / "two", path, 2, strategy, steps=2, **options):
        assert (rank["sharded"] > 0) == (strategy == "fsdp2")
        assert_same_weights(one, rank, 1e-4)
        assert_same_metrics(one, rank, 1e-4)


def test_the_warm_start_learns_by_the_models_own_logits(tmp_path: Path) -> None:
    module = SupervisedModule(ActorConfig(str(actor(tmp_path, "gemma2"))), GenerationConfig(16, 8))
    module.configure_model()
    ids = torch.tensor([PROMPTS[0] + RESPONSES[0]])
    loss = module.loss_sum(ids, torch.ones_like(ids), torch.ones(ids.shape))
    own = module.language_model(input_ids=ids, labels=ids).loss
    assert float(loss) / (ids.shape[1] - 1) == pytest.approx(float(own), rel=1e-5)


def test_a_transform_that_is_not_known_is_left_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tf.Qwen2ForCausalLM(tf.Qwen2Config(**SHAPE))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    model.save_pretrained(tmp_path)
    assert choose_route(model.eval()) is BATCHED
    forward = tf.Qwen2ForCausalLM.forward

    def squashed(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits.asinh()
        return output

    monkeypatch.setattr(tf.Qwen2ForCausalLM, "forward", squashed)
    with pytest.warns(UserWarning, match=r"^Qwen2.*slow.* differ by .*computes logits .* in a way not known here"):
        policy = ActorCritic(ActorConfig(str(tmp_path)), CriticConfig("shared"))
    scores = policy(*batch(), actor=True)
    assert torch.allclose(scores.logprobs[batch()[3].bool()], torch.cat(own_logprobs(model, 1.0)), atol=1e-5)


def test_a_key_that_a_model_reads_otherwise_is_found() -> None:
    """Qwen2 does not scale, whatever its configuration says: the table would."""
    model = tf.Qwen2ForCausalLM(tf.Qwen2Config(**SHAPE, logit_scale=0.1)).eval()
    assert LogitTransform.of(model.config).multiplier == 0.1
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    with pytest.warns(UserWarning, match="not known here"):
        assert choose_route(model) is ROW_BY_ROW


@pytest.mark.parametrize(
    ("config", "transform"),
    [
        (tf.MptConfig(logit_scale="inv_sqrt_d_model"), LogitTransform()),  # a key that its forward does not read
        (tf.Gemma3Config(text_config={"final_logit_softcapping": 30.0}), LogitTransform()),  # as of 5.23
        (tf.Gemma3nConfig(), LogitTransform(cap=30.0)),
        (tf.xLSTMConfig(), LogitTransform(float32=True, cap=30.0)),
        (tf.Qwen2Config(), LogitTransform()),
    ],
    ids=["mpt", "gemma3", "gemma3n", "xlstm", "qwen2"],
)
def test_where_a_key_means_nothing(config: Any, transform: LogitTransform) -> None:
    assert LogitTransform.of(config) == transform
