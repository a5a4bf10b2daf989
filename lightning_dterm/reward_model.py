"""Reward models of preferences: a sequence classifier with one logit, and the Bradley-Terry loss that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_dterm.modules.loading import ActorLoadError, resolve_path, unchanging, with_pad_token

CALIBRATION = "preference_calibration"
"""Key of the model's config.json that holds ``[center, scale]``."""


class Calibration(NamedTuple):
    """What turns a logit, which pairs determine up to a constant, into a component's value in [0, 1].

    Attributes:
        center: Logit of value 0.5; trained here: the mean over completions of the pairs.
        scale: Logits per unit of the logistic function's argument, positive; trained here: their standard deviation.
    """

    center: float = 0.0
    scale: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """``[B]`` logits to ``sigmoid((logit - center) / scale)``."""
        return torch.sigmoid((logits - self.center) / self.scale)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """``-log sigmoid(r_chosen - r_rejected)`` of each pair (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).

    Args:
        chosen: ``[B]`` logits of the preferred completions.
        rejected: ``[B]`` logits of the others.

    Returns:
        ``[B]`` losses in nats; log 2 where the model has no preference.
    """
    return -F.logsigmoid(chosen - rejected)


def load_reward_model(path: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with one logit a sequence, without dropout, and its tokenizer, padding on the right.

    Args:
        path: Folder, hub id or ``package:NAME`` of a sequence classifier with one label, or of any base model (encoder
            or decoder) that transformers can give a classification head; the head is then new.
        dtype: Of the weights.

    Raises:
        ActorLoadError: If it cannot be loaded, or is a classifier with several labels.
    """
    folder = resolve_path(path)
    try:
        # the end of a prompt says more of the task than its beginning
        loaded = AutoTokenizer.from_pretrained(folder, padding_side="right", truncation_side="left")
        tokenizer = with_pad_token(loaded)
        config = unchanging(AutoConfig.from_pretrained(folder))
        classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        if classifier and config.num_labels != 1:
            raise ActorLoadError(
                f"{path!r} classifies into {config.num_labels} labels; a reward model has one logit: give a model "
                "trained with one label, or a base model"
            )
        config.num_labels = 1
        config.pad_token_id = tokenizer.pad_token_id  # decoders read the logit at the last token that is none
        model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=dtype)
    except ActorLoadError:
        raise
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ActorLoadError(
            f"cannot load a reward model from {path!r}: {first} Give a local folder written by save_pretrained, or a "
            "hub id that is reachable or cached, of an architecture that transformers can classify sequences with."
        ) from error
    return model, tokenizer


def calibration_of(model: PreTrainedModel) -> Calibration:
    """What training has left in the model's configuration; a plain logistic function where there is nothing."""
    return Calibration(*getattr(model.config, CALIBRATION, ()))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], max_length: int
) -> BatchEncoding:
    """Prompt and completion as a pair, as the tokenizer joins pairs: ids and mask ``[B, L]``, right-padded.

    What is longer than ``max_length`` (or than the tokenizer says the model reads) loses tokens at its beginning, the
    longer of the two first.
    """
    limit = min(max_length, int(tokenizer.model_max_length))
    pairs = list(prompts), list(completions)
    encoded: BatchEncoding = tokenizer(
        *pairs, padding=True, truncation="longest_first", max_length=limit, return_tensors="pt"
    )
    return encoded


def logits_of(model: PreTrainedModel, encoded: BatchEncoding) -> Tensor:
    """``[B]`` logits, float32."""
    inputs = {name: tensor.to(model.device) for name, tensor in encoded.items()}
    logits: Tensor = model(**inputs).logits
    return logits.squeeze(-1).float()
