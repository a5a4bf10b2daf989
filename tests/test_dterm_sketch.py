"""Sketched score functions: against gradients by autograd, in chunks and micro-batches, and as inner products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_dterm.dterm.sketch import GradientSketch
from lightning_dterm.modules.config import GenerationConfig, KLConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.scoring import score_responses
from lightning_dterm.rl.logprobs import restrict, token_logprobs
from tests.test_scoring import given
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_trainer


def projected(sketch: GradientSketch, gradient: Tensor) -> Tensor:
    """``A^T G C`` of a materialised gradient ``[V, h]``."""
    vocabulary = sketch.projection(gradient.shape[0], "vocabulary", gradient.device)
    hidden = sketch.projection(gradient.shape[1], "hidden", gradient.device)
    return (vocabulary.T @ gradient @ hidden).flatten()


@pytest.mark.parametrize("constrained", [False, True])
def test_it_is_the_projection_of_the_gradient_by_autograd(constrained: bool) -> None:
    torch.manual_seed(0)
    head, hidden, labels = torch.nn.Linear(5, 11, bias=False), torch.randn(9, 5), torch.randint(0, 11, (9,))
    rows = torch.tensor([0, 0, 0, 0, 1, 1, 3, 3, 3])  # the third response has no token
    support = None
    if constrained:
        support = torch.stack([labels, (labels + 1) % 11, torch.full((9,), -1)], -1)
        support[2] = -1  # any token
    sketch = GradientSketch(3)
    tally = sketch.tally(rows, 4, labels, 0.7)
    with torch.no_grad():
        token_logprobs(head, hidden, labels, 0.7, chunk_tokens=4, support=support, visit=tally)
    for row in range(4):
        logits = head(hidden) / 0.7
        logits = logits if support is None else restrict(logits, support)
        chosen = logits.log_softmax(-1).gather(-1, labels[:, None])[rows == row].sum()
        (gradient,) = torch.autograd.grad(chosen, head.weight)
        assert torch.allclose(tally.total[row], projected(sketch, gradient), atol=1e-5)
    assert not tally.total[2].any()
    with pytest.raises(ValueError, match=r"under torch.no_grad"):
        token_logprobs(head, hidden, labels, visit=tally)


def test_inner_products_are_kept_better_the_larger_the_sketch() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(12, 40, 30) + torch.randn(1, 40, 30)  # they have something in common
    exact = gradients.flatten(1) @ gradients.flatten(1).T
    errors = []
    for size in (8, 64):
        rows = torch.stack([projected(GradientSketch(size), gradient) for gradient in gradients])
        errors.append(float(((rows @ rows.T - exact) / exact.diagonal().mean()).abs().mean()))
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.1
    with pytest.raises(ValueError, match="sketch must be at least 1, got 0"):
        GradientSketch(0)


def test_scoring_gives_each_responses_gradient_in_any_micro_batches(tmp_path: Path) -> None:
    module = PPOModule(
        actor=ActorConfig(path=str(tiny_actor(tmp_path / "actor"))),
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=8, samples_per_prompt=2),
        ppo=PPOConfig(micro_batch_size=3),
        kl=KLConfig(placement="none"),
    )
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1)
    trainer.fit(module, datamodule=TextData(batch_size=8, size=8))
    prompt, _, response, mask = rows = given(7)
    sketch = GradientSketch(4)
    scores = score_responses(module, *rows, temperature=0.7, sketch=sketch)
    plain = score_responses(module, *rows, temperature=0.7)
    assert plain.gradients is None
    assert torch.equal(scores.logprobs, plain.logprobs)
    assert scores.gradients is not None
    model = module.language_model
    for row in range(7):
        length = int(mask[row].sum())
        ids = torch.cat([prompt[row], response[row, :length]])[None]
        output = model(input_ids=ids, output_hidden_states=True)
        states, logits = output.hidden_states[-1][0].detach(), output.logits[0].detach()
        added = torch.zeros(logits.shape[-1], states.shape[-1], requires_grad=True)  # beside the model's own head
        chosen = ((logits + states @ added.T) / 0.7).log_softmax(-1)[4:-1].gather(-1, response[row, :length, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), added)
        assert torch.allclose(scores.gradients[row], projected(sketch, gradient), atol=1e-4)
    empty = score_responses(module, *(part[:0] for part in rows), temperature=0.7, sketch=sketch)
    assert empty.gradients is not None
    assert empty.gradients.shape == (0, 16)
