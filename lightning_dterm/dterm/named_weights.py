"""Weights given by component name: checked, and put into the components' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_weights(weights: Mapping[str, float], what: str) -> None:
    """Refuse weights that are not finite, negative, or all 0.

    Raises:
        ValueError: Naming ``what`` and the culprits.
    """
    bad = [name for name, weight in weights.items() if not 0 <= weight < float("inf")]
    if bad:
        raise ValueError(f"{what} of {bad} must be finite and not negative")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"{what} must hold at least one positive weight")


def ordered(weights: Mapping[str, float], component_names: Sequence[str], what: str) -> Tensor:
    """The weights in the components' order, ``[n]``.

    Raises:
        ValueError: If they do not name exactly the components; ``what`` says which weights.
    """
    missing = [name for name in component_names if name not in weights]
    unknown = [name for name in weights if name not in component_names]
    if missing or unknown:
        raise ValueError(
            f"{what} must name exactly the reward components {list(component_names)}"
            + (f"; missing: {missing}" if missing else "")
            + (f"; not a component: {unknown}" if unknown else "")
        )
    return torch.tensor([float(weights[name]) for name in component_names])
