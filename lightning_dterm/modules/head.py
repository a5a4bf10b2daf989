"""From hidden states to logits as a model does it: its projection, and what the model does before and after that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lightning_dterm.rl.logprobs import Head

# What a key of a model's configuration means, in transformers 5.17 to 5.23: the field of LogitTransform that it sets.
_MEANINGS = {
    "final_logit_softcapping": "cap",  # Gemma 2, 3, 3n and 4, VaultGemma, NanoChat, Beam, Inkling 2
    "logits_soft_cap": "cap",  # RecurrentGemma
    "output_logit_soft_cap": "cap",  # xLSTM
    "logit_scale": "multiplier",  # Cohere, Cohere 2, Cohere Compass
    "lm_head_multiplier": "multiplier",  # Falcon-H1
    "logits_scaling": "divisor",  # Granite, dense, mixture of experts, hybrid
    "logits_mup_width_multiplier": "hidden_divisor",  # Inkling
    "unpadded_vocab_size": "vocabulary",  # Inkling, Inkling 2
}
# Where a model type means something else by such a key; None: it does not read it.
_OTHER_MEANINGS: dict[str, dict[str, str | None]] = {
    "hyperclovax": {"logits_scaling": "multiplier"},
    "minicpm3": {"logits_scaling": "hidden_divisor"},
    "mpt": {"logit_scale": None},
    "gemma3": {"final_logit_softcapping": None},  # Gemma3ForConditionalGeneration; gemma3_text caps
}
_CAPPED_IN_FLOAT32 = ("beam", "inkling2_text", "xlstm")


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its hidden states before and to its logits after the projection, in this order.

    The operations are the model's own, in its order and precision, so that logits are equal to the last bit. None of
    them touches the hidden states that the critic's value head reads.

    Attributes:
        hidden_divisor: Hidden states are divided by it.
        float32: Logits are raised to float32.
        multiplier / divisor: Logits are multiplied, or divided, by it.
        cap: Logits become ``cap * tanh(logits / cap)`` (soft-capping, Gemma 2, arXiv:2408.00118).
        vocabulary: Only so many logits are kept: the projection's further rows are filling.
    """

    hidden_divisor: float | None = None
    float32: bool = False
    multiplier: float | None = None
    divisor: float | None = None
    cap: float | None = None
    vocabulary: int | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> LogitTransform:
        """The transform that a model with this configuration applies."""
        text = config.get_text_config()
        other = _OTHER_MEANINGS.get(config.model_type, _OTHER_MEANINGS.get(text.model_type, {}))
        found = {}
        for key, meaning in _MEANINGS.items():
            field, value = other.get(key, meaning), getattr(text, key, None)
            if field is not None and value is not None:
                found[field] = value
        return cls(float32=text.model_type in _CAPPED_IN_FLOAT32, **found)

    def __call__(self, projection: nn.Module, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of hidden states ``[N, h]``."""
        if self.hidden_divisor is not None:
            hidden = hidden / self.hidden_divisor
        logits: Tensor = projection(hidden)
        if self.vocabulary is not None:
            logits = logits[..., : self.vocabulary]
        if self.float32:
            logits = logits.float()
        if self.multiplier is not None:
            logits = logits * self.multiplier
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


def logits_head(model: nn.Module) -> Head:
    """The map from a causal language model's last hidden states ``[N, h]`` to its logits ``[N, V]``.

    With LoRA on the projection the adapter that is active when the map is called takes part. What a model does that
    its configuration does not tell is found by :func:`lightning_dterm.modules.agreement.choose_route`.
    """
    projection = model.get_output_embeddings()  # type: ignore[operator]
    return partial(LogitTransform.of(model.config), projection)  # type: ignore[arg-type]
