"""What is logged of a rollout's rewards, weights and lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_dterm.modules.distributed import Means, world_size
from lightning_dterm.types import Rollout


def measure(rollout: Rollout, mask: Tensor, overlong_prompts: int, means: Means) -> None:
    """Add rewards per component, weights per component and task type, lengths and truncation to ``means``.

    Args:
        rollout: With scores, weights and token rewards.
        mask: ``[B, T]`` tokens that take part in the update.
        overlong_prompts: Training prompts cut so far in this run, over all ranks; each rank gives the same number.
        means: Where they go.
    """
    assert rollout.alpha is not None
    assert rollout.scores is not None
    assert rollout.token_rewards is not None
    total = rollout.token_rewards.sum(-1)
    means.add("reward/total", total.sum(), len(rollout))
    means.add("reward/per_token", total.sum(), rollout.response_mask.sum())
    means.add("rollout/overlong_prompts", overlong_prompts)
    means.add("rollout/length", rollout.response_mask.sum(), len(rollout))
    means.add("rollout/truncated", (~rollout.finished).sum(), len(rollout))
    means.add("rollout/left_out", (~mask.any(-1)).sum(), len(rollout))
    if rollout.outcome is not None:
        means.add_masked("reward/outcome", rollout.outcome, ~rollout.outcome.isnan())
        means.add("rollout/informative_groups", informative_groups(rollout.outcome, rollout.group), 1 / world_size())
    for column, name in enumerate(rollout.component_names):
        applicable = ~rollout.scores[:, column].isnan()
        means.add_masked(f"reward/{name}", rollout.scores[:, column], applicable)
        for task_type in sorted({task.task_type for task in rollout.tasks}):
            rows = applicable & torch.tensor([t.task_type == task_type for t in rollout.tasks]).to(applicable)
            means.add_masked(f"weight/{task_type}/{name}", rollout.alpha[:, column], rows)


def informative_groups(outcome: Tensor, group: Tensor) -> int:
    """Prompts whose samples differ in success, so that a meta-objective can learn from them.

    Args:
        outcome: ``[B]`` success, NaN where unknown.
        group: ``[B]`` index of the prompt.
    """
    spans: dict[int, tuple[float, float]] = {}
    for value, prompt in zip(outcome.tolist(), group.tolist(), strict=True):
        if value == value:  # known
            low, high = spans.get(prompt, (value, value))
            spans[prompt] = min(low, value), max(high, value)
    return sum(low < high for low, high in spans.values())
