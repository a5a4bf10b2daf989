"""Loading actors by local path, hub id or packaged name, with one clear error where that fails."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = "package:"


class ActorLoadError(ValueError):
    """An actor or tokenizer could not be loaded; the message names the path and the remedy."""


@dataclass
class ActorConfig:
    """Which language model to train and how.

    Attributes:
        path: Local folder or hub id of any transformers causal language model; ``package:NAME`` is one shipped here.
        dtype: Precision of the weights. Full fine-tuning wants ``float32``; a frozen LoRA base may be ``bfloat16``.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        attn_implementation: transformers' attention backend, e.g. ``sdpa``, ``eager``, ``flash_attention_2``; None lets
            transformers choose what the model supports (``sdpa`` where it does).
    """

    path: str = "package:quickstart"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None


def resolve_path(path: str) -> str:
    """Turn ``package:NAME`` into the folder it names; leave everything else alone.

    Raises:
        ActorLoadError: If the package ships no model of that name.
    """
    if not path.startswith(PACKAGED):
        return path
    assets = Path(__file__).resolve().parent.parent / "assets"
    folder = assets / path.removeprefix(PACKAGED)
    if not (folder / "config.json").is_file():
        known = sorted(p.name for p in assets.glob("*") if (p / "config.json").is_file())
        raise ActorLoadError(f"no packaged model {path!r}; there are: {', '.join(known) or 'none'}")
    return str(folder)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left, with a pad token distinct from its end-of-sequence token.

    Raises:
        ActorLoadError: If it cannot be loaded or has no end-of-sequence token.
    """
    return with_pad_token(read_tokenizer(path))


def read_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it is, but padding on the left.

    Raises:
        ActorLoadError: If it cannot be loaded or has no end-of-sequence token.
    """
    folder = resolve_path(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, padding_side="left")
    except (OSError, ValueError) as error:
        raise ActorLoadError(_explain("tokenizer", path, error)) from error
    if tokenizer.eos_token_id is None:
        raise ActorLoadError(f"the tokenizer of {path!r} has no eos_token: set one in its tokenizer_config.json")
    return tokenizer


def with_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give ``tokenizer`` a pad token other than its end-of-sequence token, unless it has one."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, own_pad_token: str | None, folder: Path) -> None:
    """Write ``tokenizer`` with the pad token it came with, which may be none, and not with a substitute."""
    if tokenizer.pad_token != own_pad_token:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = own_pad_token
    tokenizer.save_pretrained(folder)


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token other than EOS to fill with, a special one if there is; masks, not ids, tell padding from text.

    Of several the one with the smallest id: vocabularies come in another order in every process.
    """
    added, known = tokenizer.get_added_vocab(), tokenizer.get_vocab()
    by_id = (*sorted(added, key=added.__getitem__), *sorted(known, key=known.__getitem__))
    others = (tokenizer.unk_token, *tokenizer.all_special_tokens, *by_id)
    return next(str(token) for token in others if token is not None and token != tokenizer.eos_token)


def _explain(what: str, path: str, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"cannot load the {what} of actor {path!r}: {first_line} {_remedy(error)}"


def _remedy(error: Exception) -> str:
    """What to change, by what transformers complained of."""
    said = str(error).lower().replace("_", " ")
    if any(word in said for word in ("attention implementation", "attn implementation", "flash att")):
        return "Leave actor.attn_implementation out (transformers then chooses), or give one that the model supports."
    if isinstance(error, ImportError):
        return "Install what the model needs."
    if not isinstance(error, OSError) and ("unrecognized" in said or "does not recognize" in said):
        return "Give actor.path a causal language model of an architecture that the installed transformers knows."
    return "Give actor.path a local folder written by save_pretrained, or a hub id that is reachable or cached."


def unchanging(config: Any) -> Any:
    """Off for good: dropout, by which the update's log-probabilities would not be the rollout's, and RWKV's rescaling.

    That divides weights in place in evaluation mode, and they would be saved divided.
    """
    if hasattr(config, "rescale_every"):
        config.rescale_every = 0
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or key.endswith(("pdrop", "_drop"))):
            setattr(config, key, 0.0)
    return config


def load_causal_lm(config: ActorConfig) -> PreTrainedModel:
    """Load a causal language model without dropout.

    Raises:
        ActorLoadError: If it cannot be loaded; the message names the path and the remedy.
    """
    folder = resolve_path(config.path)
    dtype = getattr(torch, config.dtype)
    try:
        settings = unchanging(AutoConfig.from_pretrained(folder))
        attention = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
        model = AutoModelForCausalLM.from_pretrained(folder, config=settings, dtype=dtype, **attention)
    except (OSError, ValueError, ImportError) as error:
        raise ActorLoadError(_explain("model", config.path, error)) from error
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def recompute(model: nn.Module, on: bool) -> None:
    """Let a model that was loaded with ``gradient_checkpointing`` recompute activations, or not.

    transformers ties that to training mode, and in it drops the key-value cache, which generation needs. Only the parts
    that recompute are put into it: others might add noise there, as routers do.
    """
    for module in model.modules():
        module.training = on and getattr(module, "gradient_checkpointing", False) is True


@contextmanager
def not_recomputing(model: nn.Module) -> Iterator[None]:
    """For generation from such a model: the parts that recompute out of training mode, and back into it."""
    parts = [
        part for part in model.modules() if part.training and getattr(part, "gradient_checkpointing", False) is True
    ]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


def fingerprint(model: nn.Module, samples: int = 64) -> str:
    """A short hash of a model's architecture and of ``samples`` weights of every tensor, evenly spaced.

    Cheap on models of any size, and different for two checkpoints of one architecture.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        flat = tensor.detach().reshape(-1)
        last, count = flat.numel() - 1, min(samples, flat.numel())
        # integers: float32 positions run past the end of tensors with 2^24 entries and more
        picked = flat[[last * i // max(count - 1, 1) for i in range(count)]]
        digest.update(picked.to(device="cpu", dtype=torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]
