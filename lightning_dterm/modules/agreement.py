"""A check on loading: decoding with the model's cache and the training forward must give the same log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dterm.modules.forward import join, predicting_states
from lightning_dterm.modules.head import logits_head
from lightning_dterm.modules.loading import ActorLoadError
from lightning_dterm.rl.generation import Decoding
from lightning_dterm.rl.logprobs import token_logprobs

# In nats, the mean over the candidates at one position. A float32 forward of another shape differs by 1e-6 to 1e-5.
# Half precision rounds each logit to 8 (11) bits, so that log-probabilities around -20 differ by 0.1 (0.01) between two
# correct forwards of different shapes; a wrong cache or head is out by whole nats.
_TOLERANCE = {torch.bfloat16: 0.5, torch.float16: 0.1}
_TOLERANCE_FLOAT32 = 1e-3
_CANDIDATES = 8


def check_agreement(model: PreTrainedModel) -> None:
    """Refuse a model whose generation does not follow the distribution that training would score.

    Two rows, one of them left-padded, are decoded for three tokens on the model's own cache, one row leaving before the
    third; then the training forward scores the same tokens, those of the padded row also without its padding. That is
    five small forward passes, once, on weights that are whole; every rank checks its own copy. Nothing is drawn at
    random.

    Args:
        model: A causal language model in evaluation mode, not sharded.

    Raises:
        ActorLoadError: If the two disagree by more than the precision explains, or decoding fails; the message names
            the model's class and the difference, and says where its own logits are what the training forward misses.
    """
    name, precision = type(model).__name__, str(model.dtype).removeprefix("torch.")
    tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE_FLOAT32)
    try:
        with torch.no_grad(), _without_flash_on_cpu(model):
            difference = _difference(model)
            agree = difference <= tolerance
            logits_known = agree or _logits_are_known(model)
    except Exception as error:  # whatever a model's own code raises
        reason = str(error).strip().splitlines() or [""]
        raise ActorLoadError(
            f"{name} cannot be trained here in {precision}: comparing its generation from left-padded prompts with its "
            f"training forward fails ({type(error).__name__}: {reason[0]}); choose another model, e.g. Qwen2, "
            "Qwen2.5-Coder or Llama"
        ) from error
    if not agree:
        cause = "" if logits_known else ", because it computes logits from its hidden states in a way not known here"
        raise ActorLoadError(
            f"{name} cannot be trained here: log-probabilities of its generation and of its training forward differ by "
            f"{difference:.3g} (tolerance for {precision}: {tolerance:g}){cause}; choose another model, e.g. Qwen2, "
            "Qwen2.5-Coder or Llama"
        )


def _difference(model: PreTrainedModel) -> float:
    """The largest difference at any of the five decoded positions, in nats."""
    head, device = logits_head(model), next(model.parameters()).device
    vocabulary = head(torch.zeros_like(model.get_output_embeddings().weight[:1])).shape[-1]
    # any tokens do; unlikely ones, whose log-probabilities show a change of scale best
    ids = (torch.arange(16, device=device).reshape(2, 8) * 7919 + 11) % vocabulary
    prompts, responses = ids[:, :5], ids[:, 5:]
    prompt_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], device=device)
    response_mask = torch.tensor([[1, 1, 0], [1, 1, 1]], device=device)
    spread = torch.arange(_CANDIDATES - 1, device=device) * (vocabulary // _CANDIDATES)
    candidates, decoded = _decode(model, prompts, prompt_mask, responses, spread)
    apart = []
    for rows in ([0, 1], [1]):  # alone, the second row has no padding: a model that reads padding as text differs
        batch = join(prompts[rows], prompt_mask[rows], responses[rows], response_mask[rows])
        hidden = predicting_states(model.base_model, batch)
        labels, generated = candidates[rows][batch.response_mask], decoded[rows][batch.response_mask]
        trained, _ = token_logprobs(head, hidden.repeat_interleave(_CANDIDATES, 0), labels.reshape(-1))
        trained = trained.reshape(labels.shape)
        # two infinities are equal: tokens that a model forbids
        apart.append(torch.where(trained == generated, torch.zeros_like(trained), (trained - generated).abs()))
    return float(torch.cat(apart).mean(-1).max())


def _logits_are_known(model: PreTrainedModel) -> bool:
    """Whether the training forward's head makes the model's own logits of its hidden states; no cache, no padding."""
    inputs = {"input_ids": torch.arange(4, device=next(model.parameters()).device)[None], "use_cache": False}
    own, ours = model(**inputs).logits, logits_head(model)(model.base_model(**inputs).last_hidden_state)
    return own.shape == ours.shape and torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-3, equal_nan=True)


def _decode(
    model: PreTrainedModel, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates (the most likely token and ``spread``) and their log-probabilities, ``[2, 3, K]``, token by token."""
    shape = (*responses.shape, _CANDIDATES)
    candidates = torch.zeros(shape, dtype=torch.long, device=prompts.device)
    logprobs = torch.zeros(shape, dtype=torch.float32, device=prompts.device)
    state = Decoding(prompts, prompt_mask, responses.shape[1])
    for step, keep in enumerate(([0, 1], [0, 1], [1])):
        if step > 0:
            state.append(responses[state.rows, step - 1], torch.tensor(keep, device=prompts.device))
        rows, logits = state.rows, state.next_logits(model).float()
        chosen = torch.cat([logits.argmax(-1, keepdim=True), spread.expand(len(rows), -1)], dim=-1)
        candidates[rows, step] = chosen
        logprobs[rows, step] = logits.log_softmax(-1).gather(-1, chosen)
    return candidates, logprobs


@contextmanager
def _without_flash_on_cpu(model: PreTrainedModel) -> Iterator[None]:
    """Flash kernels need the GPU, to which the model has not been moved yet; cache and head are the same without."""
    chosen = model.config._attn_implementation
    if "flash" not in str(chosen) or next(model.parameters()).device.type != "cpu":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)
