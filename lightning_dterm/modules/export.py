"""Writing trained models for plain transformers and peft, from whole or sharded weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lightning_dterm.modules.actor_critic import with_adapters
from lightning_dterm.modules.distributed import rank
from lightning_dterm.modules.loading import ActorConfig, load_causal_lm, resolve_path
from lightning_dterm.modules.sharding import full_state, has_shards

if TYPE_CHECKING:
    from lightning_dterm.modules.actor_critic import CriticConfig, LoraSettings


def export_model(
    model: nn.Module,
    folder: Path,
    merge: bool,
    actor: ActorConfig,
    lora: LoraSettings | None = None,
    critic: CriticConfig | None = None,
) -> None:
    """Write a model with ``save_pretrained``; every rank must call it, rank 0 writes.

    Args:
        model: A transformers model, or a peft model with the adapter ``actor``; sharded or not.
        folder: Where to.
        merge: Fold the adapter into the base weights; False writes the adapter alone, for its base where that now is.
        actor: What ``model`` was loaded from: sharded weights are gathered into a fresh copy of it.
        lora: Adapters of ``model``.
        critic: Tells whether ``model`` carries the critic's adapter, too.
    """
    if has_shards(model):
        state = full_state(model)
        if state is None:
            return
        model = _unsharded_copy(actor, lora, critic)
        model.load_state_dict(state)
    if rank() > 0:
        return
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)  # type: ignore[operator]
    elif not merge:
        _save_adapter(model, folder, actor)
    else:
        merged_copy(model).save_pretrained(folder)


def _save_adapter(model: PeftModel, folder: Path, actor: ActorConfig) -> None:
    """Write the actor's adapter into ``folder`` itself: peft puts any that is not called ``default`` one below."""
    base = resolve_path(actor.path)  # of package:NAME the folder, which peft and transformers can load
    model.peft_config["actor"].base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    model.save_pretrained(str(folder), selected_adapters=["actor"])
    for file in (folder / "actor").iterdir():
        file.replace(folder / file.name)
    (folder / "actor").rmdir()


def _unsharded_copy(actor: ActorConfig, lora: LoraSettings | None, critic: CriticConfig | None) -> nn.Module:
    """A model to load gathered weights into; its fresh adapters leave the random state alone."""
    with torch.random.fork_rng():
        base = load_causal_lm(actor)
        return base if lora is None else with_adapters(base, lora, critic.kind if critic else "separate")


def merged_copy(actor: PeftModel) -> PreTrainedModel:
    """The base model with the actor's adapter folded in; the training model stays as it is."""
    # models that keep states of the last pass inside their layers keep its graph with them, which no copy can hold
    kept = [value for layer in actor.modules() for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    clone = copy.deepcopy(actor, {id(state): state.detach() for state in kept})
    if "critic" in clone.peft_config:
        clone.delete_adapter("critic")
    merged = clone.merge_and_unload(adapter_names=["actor"])
    assert isinstance(merged, PreTrainedModel)
    return merged
