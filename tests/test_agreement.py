"""Model families: run in batches where generation and training agree so, else row by row, else refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightning_dterm.modules.actor_critic import ActorCritic, CriticConfig
from lightning_dterm.modules.agreement import choose_route
from lightning_dterm.modules.config import GenerationConfig
from lightning_dterm.modules.forward import BATCHED, ROW_BY_ROW
from lightning_dterm.modules.loading import ActorConfig, ActorLoadError
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.rl import generation
from lightning_dterm.rl.generation import Decoding, sample_uniforms
from tests.tiny import tiny_actor

VOCABULARY = 280
ENDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
SHAPE: dict[str, Any] = {
    **ENDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
GPT: dict[str, Any] = {**ENDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MAMBA: dict[str, Any] = {**ENDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
OPT: dict[str, Any] = {**ENDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
NEXT: dict[str, Any] = {
    **SHAPE,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
H1: dict[str, Any] = {
    **SHAPE,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}
WORKING: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SHAPE)),
    "sliding window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SHAPE, sliding_window=6)),
    "alibi": lambda: tf.BloomForCausalLM(tf.BloomConfig(**ENDS, hidden_size=32, n_layer=2, n_head=4)),
    "eager only": lambda: tf.CodeGenForCausalLM(tf.CodeGenConfig(**GPT, n_ctx=64, rotary_dim=8)),
    "narrowed states": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**OPT, max_position_embeddings=64, word_embed_proj_dim=16)
    ),
    "state space": lambda: tf.MambaForCausalLM(tf.MambaConfig(**MAMBA)),
    "linear attention": lambda: tf.Qwen3NextForCausalLM(tf.Qwen3NextConfig(**NEXT)),
    "hybrid": lambda: tf.FalconH1ForCausalLM(tf.FalconH1Config(**H1)),
    "own cache": lambda: tf.MiniMaxForCausalLM(tf.MiniMaxConfig(**SHAPE, num_local_experts=2)),
}


def saved(make: Callable[[], PreTrainedModel], folder: Path) -> Path:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():  # peaked distributions: a uniform one would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    return folder


def sampled_logprobs(policy: ActorCritic, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, list[int]]:
    """Log-probabilities of a rollout's tokens as generation saw them and as training does; rows of each step."""
    ids = torch.randint(2, VOCABULARY, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((5, 2, 0, 7, 3, 0)):
        mask[row, :padding] = 0
        ids[row, :padding] = 1
    seen, sizes, rows = torch.zeros(6, 14), [], [torch.arange(6)]
    forward, draw = Decoding.next_logits, generation.draw

    def note_rows(self: Decoding, model: Any) -> Tensor:
        rows[0] = self.rows
        return forward(self, model)

    def note(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
        chosen = draw(logits, uniforms, temperature, top_p)
        picked = (logits / temperature).log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        seen[rows[0], len(sizes)] = picked
        sizes.append(len(chosen))
        return chosen

    monkeypatch.setattr(Decoding, "next_logits", note_rows)
    monkeypatch.setattr(generation, "draw", note)
    uniforms = sample_uniforms([(row,) for row in range(6)], 14)
    out = policy.generate(ids, mask, uniforms, eos_ids=list(range(0, VOCABULARY, 5)), pad_id=1, temperature=0.7)
    with torch.no_grad():
        scores = policy(ids, mask, out.ids, out.mask, actor=True, critic=True, temperature=0.7)
    assert scores.values.shape == out.ids.shape
    return seen[:, : out.ids.shape[1]] * out.mask, scores.logprobs, sizes


@pytest.mark.parametrize("family", WORKING)
def test_families_that_work_do(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ActorCritic(ActorConfig(str(saved(WORKING[family], tmp_path))), CriticConfig("shared"))
    assert policy.route is BATCHED
    generated, trained, sizes = sampled_logprobs(policy, monkeypatch)
    assert min(sizes) <= 0.75 * 6, "the case must drop rows"
    assert float((generated - trained).abs().max()) < 1e-4


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(saved(WORKING["qwen2"], tmp_path)).eval()


def scaled(_model: Any, _args: Any, output: Any) -> Any:
    output.logits = output.logits * 0.9
    return output


def sharpened(_model: Any, _args: Any, output: Any) -> Any:
    output.logits = output.logits * 4
    return output


def forgetful(_model: Any, _args: Any, options: dict[str, Any]) -> Any:
    """Left padding taken for text from the second token on."""
    if "past_key_values" in options:
        options["attention_mask"] = torch.ones_like(options["attention_mask"])
    return _args, options


def test_a_change_that_no_list_knows_is_left_to_the_model(model: PreTrainedModel) -> None:
    assert choose_route(model) is BATCHED
    model.register_forward_hook(scaled)
    with pytest.warns(UserWarning, match=r"^Qwen2ForCausalLM: .*slow.* differ by \d.*float32: 0.001"):
        assert choose_route(model) is ROW_BY_ROW


def test_where_padding_is_forgotten_there_is_none(model: PreTrainedModel) -> None:
    model.register_forward_pre_hook(forgetful, with_kwargs=True)
    with pytest.warns(UserWarning, match=r"^Qwen2ForCausalLM: .*slow.* differ by"):
        assert choose_route(model) is ROW_BY_ROW


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_in_half_precision_is_no_difference(model: PreTrainedModel, dtype: torch.dtype) -> None:
    assert choose_route(model.to(dtype)) is BATCHED
    model.register_forward_hook(sharpened)
    with pytest.warns(UserWarning, match=f"tolerance for {str(dtype)[6:]}"):
        assert choose_route(model) is ROW_BY_ROW


def test_a_model_that_cannot_decode_is_refused_in_one_line(model: PreTrainedModel) -> None:
    def broken(*_: Any) -> None:
        raise IndexError("list index out of range\nand more")

    model.register_forward_pre_hook(broken)
    with pytest.raises(
        ActorLoadError, match=r"^Qwen2ForCausalLM .*\(IndexError: list index out of range\); choose"
    ) as refusal:
        choose_route(model)
    assert "\n" not in str(refusal.value)


def test_weights_that_are_not_numbers_are_refused(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ActorLoadError, match="nan"):
        choose_route(model)


def test_it_leaves_no_trace(model: PreTrainedModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = {name for name, _ in model.named_buffers()}
    state = torch.get_rng_state()
    choose_route(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert names == {name for name, _ in model.named_buffers()}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flash_kernels_wait_for_the_gpu(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda _, name: used.append(name))
    model.config._attn_implementation_internal = "flash_attention_2"
    with contextlib.suppress(ActorLoadError):  # the patched switch switches nothing
        choose_route(model)
    assert used == ["eager", "flash_attention_2"] * 2


def test_the_warm_start_checks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = tiny_actor(tmp_path)
    init = tf.Qwen2ForCausalLM.__init__

    def hooked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.register_forward_hook(lambda _m, _a, out: out.__setitem__("logits", torch.rand_like(out.logits)) or out)

    monkeypatch.setattr(tf.Qwen2ForCausalLM, "__init__", hooked)
    with pytest.raises(ActorLoadError, match="Qwen2ForCausalLM"):
        SupervisedModule(ActorConfig(path=str(actor)), GenerationConfig(16, 8)).configure_model()
