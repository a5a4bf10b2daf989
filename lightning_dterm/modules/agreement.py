"""Choosing on loading how a model is run: its decoding and its scoring must give the same log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dterm.modules.forward import BATCHED, ROW_BY_ROW, Route, join
from lightning_dterm.modules.head import logits_head
from lightning_dterm.modules.loading import ActorLoadError
from lightning_dterm.rl.logprobs import token_logprobs

# In nats, the mean over the candidates at one position. A float32 forward of another shape differs by 1e-6 to 1e-5.
# Half precision rounds each logit to 8 (11) bits, so that log-probabilities around -20 differ by 0.1 (0.01) between two
# correct forwards of different shapes; a wrong cache or head is out by whole nats.
_TOLERANCE = {torch.bfloat16: 0.5, torch.float16: 0.1}
_TOLERANCE_FLOAT32 = 1e-3
_CANDIDATES = 8


def choose_route(model: PreTrainedModel, sharded: bool = False) -> Route:
    """The fastest way to run a model by which it generates from the distribution that training scores.

    Two rows, one of them left-padded, are decoded for three tokens, one row leaving before the third; then the same
    tokens are scored, those of the padded row also without its padding. A few small forward passes, once, on weights
    that are whole; every rank checks its own copy. Nothing is drawn at random. Only where batches and cache do
    not pass is the model tried row by row, and a warning says that this is slow.

    Args:
        model: A causal language model in evaluation mode, not yet sharded.
        sharded: Its weights will be. Forward passes are collectives then, and row by row their number differs between
            ranks.

    Raises:
        ActorLoadError: If the two disagree both ways by more than the precision explains, or fail, or agree only row by
            row where weights are sharded; the message names the model's class and the difference.
    """
    name = type(model).__name__
    batched = _disagreement(model, BATCHED)
    if batched is None:
        return BATCHED
    alone = _disagreement(model, ROW_BY_ROW)
    if alone is not None:
        raise ActorLoadError(
            f"{name} cannot be trained here: in batches with its cache {batched}; one row at a time without a cache "
            f"{alone}; choose another model, e.g. Qwen2, Qwen2.5-Coder or Llama"
        )
    if sharded:
        raise ActorLoadError(
            f"{name} can only be run one row at a time, because in batches with its cache {batched}; processes with "
            "sharded weights would wait for each other for ever: use --trainer.strategy ddp or one process"
        )
    rank_zero_warn(
        f"{name}: rollouts and updates will be slow, one row at a time, without a cache, in time that grows with the "
        f"square of the length, because in batches with its cache {batched}"
    )
    return ROW_BY_ROW


def states_width(model: PreTrainedModel, route: Route) -> int:
    """Width of the hidden states that a critic reads: not in every model that of its embeddings or its projection."""
    one = torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad(), _without_flash_on_cpu(model):
        return route.states(model.base_model, join(0 * one, one, 0 * one, one)).shape[-1]


def _disagreement(model: PreTrainedModel, route: Route) -> str | None:
    """What is wrong with this way to run the model, as the rest of a sentence; None if nothing is."""
    precision, tolerance = str(model.dtype).removeprefix("torch."), _TOLERANCE.get(model.dtype, _TOLERANCE_FLOAT32)
    try:
        with torch.no_grad(), _without_flash_on_cpu(model):
            difference = _difference(model, route)
            if difference <= tolerance:
                return None
            known = not route.from_states or _logits_are_known(model)
    except Exception as error:  # whatever a model's own code raises
        reason = str(error).strip().splitlines() or [""]
        return f"it fails in {precision} ({type(error).__name__}: {reason[0]})"
    cause = "" if known else " (it computes logits from its hidden states in a way not known here)"
    return (
        f"the log-probabilities of its generation and of its scoring differ by {difference:.3g} (tolerance for "
        f"{precision}: {tolerance:g}){cause}"
    )


def _difference(model: PreTrainedModel, route: Route) -> float:
    """The largest difference at any of the five decoded positions, in nats."""
    device = next(model.parameters()).device
    vocabulary = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False).logits.shape[-1]
    # any tokens do; unlikely ones, whose log-probabilities show a change of scale best
    ids = (torch.arange(16, device=device).reshape(2, 8) * 7919 + 11) % vocabulary
    prompts, responses = ids[:, :5], ids[:, 5:]
    prompt_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], device=device)
    response_mask = torch.tensor([[1, 1, 0], [1, 1, 1]], device=device)
    spread = torch.arange(_CANDIDATES - 1, device=device) * (vocabulary // _CANDIDATES)
    candidates, decoded = _decode(model, route, prompts, prompt_mask, responses, spread)
    apart = []
    for rows in ([0, 1], [1]):  # alone, the second row has no padding: a model that reads padding as text differs
        batch = join(prompts[rows], prompt_mask[rows], responses[rows], response_mask[rows])
        source, head = route.predict(model, batch)
        labels, generated = candidates[rows][batch.response_mask], decoded[rows][batch.response_mask]
        trained, _ = token_logprobs(head, source.repeat_interleave(_CANDIDATES, 0), labels.reshape(-1))
        apart.append(_apart(trained.reshape(labels.shape), generated))
    if route is ROW_BY_ROW:  # would hide that rows change each other: a defect, wherever the model is run next
        own = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in ids])
        together = model(input_ids=ids, use_cache=False).logits
        apart.append(_apart(own.float().log_softmax(-1), together.float().log_softmax(-1)).flatten())
    return float(torch.cat(apart).max())


def _apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean distance over the last dimension; two infinities are equal: tokens that a model forbids."""
    return torch.where(ours == theirs, torch.zeros_like(ours), (ours - theirs).abs()).mean(-1)


def _logits_are_known(model: PreTrainedModel) -> bool:
    """Whether the training forward's head makes the model's own logits of its hidden states; no cache, no padding."""
    inputs = {"input_ids": torch.arange(4, device=next(model.parameters()).device)[None], "use_cache": False}
    own, ours = model(**inputs).logits, logits_head(model)(model.base_model(**inputs).last_hidden_state)
    return own.shape == ours.shape and torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-3, equal_nan=True)


def _decode(
    model: PreTrainedModel, route: Route, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates (the most likely token and ``spread``) and their log-probabilities, ``[2, 3, K]``, token by token."""
    shape = (*responses.shape, _CANDIDATES)
    candidates = torch.zeros(shape, dtype=torch.long, device=prompts.device)
    logprobs = torch.zeros(shape, dtype=torch.float32, device=prompts.device)
    state = route.decoding(prompts, prompt_mask, responses.shape[1])
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
