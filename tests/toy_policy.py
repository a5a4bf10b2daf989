"""A softmax policy small enough that its gradients are materialised and its expectations enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

VOCABULARY, WIDTH, LENGTH = 4, 3, 2


class ToyPolicy:
    """Writes LENGTH tokens; ``logits_t = W h_t`` with fixed hidden states, one W for all G prompts."""

    def __init__(self, prompts: int, seed: int = 0, common: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(1, LENGTH, WIDTH, generator=generator)
        own = torch.randn(prompts, LENGTH, WIDTH, generator=generator)
        self.hidden = (common * shared + (1 - common) * own).double()
        self.weight = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
        self.generator = generator

    def sample(self, count: int) -> Tensor:
        """Tokens ``[G, K, LENGTH]``."""
        probabilities = (self.hidden @ self.weight.T).softmax(-1)  # [G, LENGTH, V]
        flat = torch.multinomial(probabilities.flatten(0, 1), count, replacement=True, generator=self.generator)
        return flat.view(len(self.hidden), LENGTH, count).transpose(1, 2)

    def logprob(self, weight: Tensor, prompt: int, tokens: Tensor) -> Tensor:
        """Log-probability of one response ``[LENGTH]`` under ``weight``."""
        logits = self.hidden[prompt] @ weight.T
        return logits.log_softmax(-1).gather(-1, tokens[:, None]).sum()

    def score(self, prompt: int, tokens: Tensor) -> Tensor:
        """Its gradient in the weight by autograd, ``[V * WIDTH]``."""
        weight = self.weight.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.logprob(weight, prompt, tokens), weight)
        return gradient.flatten()

    def scores(self, tokens: Tensor) -> Tensor:
        """Those of ``tokens [G, K, LENGTH]``, ``[G, K, V * WIDTH]``, each different response differentiated once."""
        table: dict[tuple[int, ...], Tensor] = {}
        rows = []
        for prompt, group in enumerate(tokens.tolist()):
            for one in group:
                key = (prompt, *one)
                if key not in table:
                    table[key] = self.score(prompt, torch.tensor(one))
                rows.append(table[key])
        return torch.stack(rows).view(*tokens.shape[:2], -1)

    def expectation(self, weight: Tensor, prompt: int, value: Callable[[Tensor], float]) -> Tensor:
        """``E[value(response)]`` under ``weight``, over all responses; differentiable."""
        every = [torch.tensor(one) for one in itertools.product(range(VOCABULARY), repeat=LENGTH)]
        return sum((self.logprob(weight, prompt, one).exp() * value(one) for one in every), torch.zeros(()).double())

    def gradient(self, value: Callable[[Tensor], float]) -> Tensor:
        """The true policy gradient of ``sum over prompts of E[value]``, ``[V * WIDTH]``."""
        weight = self.weight.clone().requires_grad_(True)
        total = torch.stack([self.expectation(weight, prompt, value) for prompt in range(len(self.hidden))]).sum()
        return torch.autograd.grad(total, weight)[0].flatten()
