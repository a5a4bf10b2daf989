"""What a PPO checkpoint holds, and what it refuses to resume."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning import LightningModule

    from lightning_dterm.modules.loading import ActorConfig
    from lightning_dterm.modules.ppo import PPOModule

KEY = "lightning_dterm"
_EXTRA = "_extra_state"
_BEFORE = {"weighting.film": "none", "weighting.normalize": "false"}  # of checkpoints from before these settings


class ResumeError(ValueError):
    """A checkpoint does not fit the run; the message says what differs and what to do."""


def trainable_names(module: PPOModule) -> set[str]:
    """Names of the policy's parameters that train, and so must be in a checkpoint."""
    return {name for name, p in module.named_parameters() if p.requires_grad and not name.startswith("weighting.")}


def save(module: PPOModule, checkpoint: dict[str, Any]) -> None:
    """Drop frozen weights, which are reloaded from ``actor.path``, and add the state PPO needs. weights_only-safe."""
    trainable = trainable_names(module)
    checkpoint["state_dict"] = {
        name: tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name in trainable or (name.startswith("weighting.") and not name.endswith(_EXTRA))
    }
    number_by_module(module, checkpoint)
    assert module.policy is not None
    checkpoint[KEY] = {
        "actor": module.policy.fingerprint,
        "actor_path": module.actor_config.path,
        "component_names": list(module.component_names),
        "kl": module.kl_controller.state_dict(),
        "trained": sorted(trainable & checkpoint["state_dict"].keys()),
        "weighting": _extra_states(module.weighting),
        "overlong_prompts": module.overlong_prompts,
        "seed": module.seed,
        "settings": settings_of(module),
    }


def number_by_module(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Number parameters in the saved optimizers as the module lists them, not as the optimizer does.

    FSDP2 takes the numbers for that, so that it would give the state of a run without it to other parameters; others
    go by the order alone.
    """
    place = {id(parameter): number for number, parameter in enumerate(module.parameters())}
    for saved, optimizer in zip(checkpoint.get("optimizer_states", []), module.trainer.optimizers, strict=False):
        if "param_groups" not in saved:  # under FSDP2 rank 0 alone has it
            continue
        numbers: dict[Any, int] = {}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
            numbers |= {old: place[id(p)] for old, p in zip(group["params"], own["params"], strict=True)}
            group["params"] = [numbers[old] for old in group["params"]]
        saved["state"] = {numbers[old]: state for old, state in saved["state"].items()}


def settings_of(module: PPOModule) -> dict[str, Any]:
    """Settings without which the saved weights are another actor, critic or weighting, by their names in YAML."""
    lora = asdict(module.lora) if module.lora is not None else {}
    settings = {f"lora.{name}": value for name, value in lora.items()}
    settings |= {"lora": "set" if lora else "null", "critic.kind": module.critic_config.kind}
    settings["weighting"] = type(module.weighting).__qualname__
    settings |= {f"weighting.{name}": value for name, value in module.weighting.resume_settings().items()}
    if any(True for _ in module.weighting.parameters()):  # the others do not read the embedding
        for name, part in module.weighting.named_children():
            settings[f"weighting.{name}"] = type(part).__qualname__
        settings["task_encoder"] = type(module.task_encoder).__qualname__
        settings["task_encoder's width"] = module.task_encoder.dim
        # once "task_encoder's identity", which held transformers' version; in an old checkpoint it is passed over
        settings["task_encoder's content"] = module.task_encoder.identity
    return settings


def _extra_states(weighting: nn.Module) -> dict[str, Any]:
    """Extra state by submodule name; kept beside the weights, because FSDP2's loader carries tensors only."""
    owners = {
        name: m for name, m in weighting.named_modules() if type(m).get_extra_state is not nn.Module.get_extra_state
    }
    return {name: owner.get_extra_state() for name, owner in owners.items()}


def check_before_loading(module: LightningModule, check: Callable[[dict[str, Any]], None]) -> None:
    """Let the strategy ``check`` first: FSDP2's loads weights while it reads, before the module is asked."""
    strategy: Any = module.trainer.strategy
    load = type(strategy).load_checkpoint

    def checked_load(path: str | Path, *args: Any, **kwargs: Any) -> Any:
        if Path(path).is_dir():
            raise ResumeError(
                f"{path} is a folder of shards, from which no run can be resumed: train with "
                "save_distributed_checkpoint: false, as configs/strategy/fsdp2.yaml does"
            )
        if Path(path).is_file():
            check(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
        return load(strategy, path, *args, **kwargs)

    strategy.load_checkpoint = checked_load


def restore(module: PPOModule, checkpoint: dict[str, Any]) -> None:
    """Check that the checkpoint belongs to this actor and components, then restore the state beside the weights.

    Raises:
        ResumeError: As :func:`check`.
    """
    check(module, checkpoint)
    state = checkpoint[KEY]
    module.kl_controller.load_state_dict(state["kl"])
    for name, extra in state["weighting"].items():
        module.weighting.get_submodule(name).set_extra_state(extra)
    module.overlong_prompts = int(state["overlong_prompts"])
    _restore_seed(module, int(state["seed"]))


def check(module: PPOModule, checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint that does not fit; a module without reward callbacks takes over its components.

    Raises:
        ResumeError: If it was not written by this module, for another actor, other components, settings
            (:func:`settings_of`), trainable parts or shapes. Older checkpoints do not hold the settings.
    """
    state = checkpoint.get(KEY)
    if state is None:
        raise ResumeError("this checkpoint was not written by PPOModule: export its model and name that as actor.path")
    assert module.policy is not None
    check_actor(state["actor"], state["actor_path"], module.policy.fingerprint, module.actor_config)
    names = tuple(state["component_names"])
    if not module.component_names:
        module.configure_weighting(names)
    elif names != module.component_names:
        raise ResumeError(
            f"this checkpoint was trained with reward components {', '.join(names)}, the run has "
            f"{', '.join(module.component_names)}: give the same components in the same order"
        )
    _check_settings(module, state.get("settings", {}))
    _check_names(module, set(state["trained"]))
    _check_shapes(module, checkpoint.get("state_dict", {}))


def check_actor(saved: str, saved_path: str | None, now: str, actor: ActorConfig) -> None:
    """Compare the fingerprint of the actor that a checkpoint was trained from with this run's.

    Raises:
        ResumeError: If they differ.
    """
    if saved != now:
        raise ResumeError(
            f"this checkpoint was trained from actor {saved_path!r} (fingerprint {saved}), but actor.path is "
            f"{actor.path!r} (fingerprint {now}): give the same actor.path, or start a new run without --ckpt_path"
        )


def _restore_seed(module: PPOModule, seed: int) -> None:
    """A run that was given no seed of its own goes on with its checkpoint's, so that resume is exact."""
    if module.follows_seed and module.seed != seed:
        rank_zero_warn(
            f"going on with the checkpoint's seed {seed} instead of seed_everything's {module.seed}; for another one "
            "give model.init_args.seed"
        )
        module.seed = seed


def _check_settings(module: PPOModule, saved: dict[str, Any]) -> None:
    now = settings_of(module)
    saved = {**_BEFORE, **saved}
    for name, value in sorted(saved.items()):
        if name in now and now[name] != value:
            raise ResumeError(
                f"{name} is {value} in this checkpoint and {now[name]} in this run: give the same, or start a new run "
                "without --ckpt_path"
            )


def _check_shapes(module: PPOModule, saved: dict[str, Any]) -> None:
    """Weights that would not fit, in one line; also of checkpoints that do not hold their settings."""
    wanted = {name: tuple(p.shape) for name, p in (*module.named_parameters(), *module.named_buffers())}
    for name, tensor in saved.items():
        shape = tuple(tensor.shape)
        if wanted.get(name, shape) != shape:
            raise ResumeError(
                f"{name} has shape {shape} in this checkpoint and {wanted[name]} in this run: give the same settings "
                f"of {'the weighting and its task_encoder' if name.startswith('weighting.') else 'lora and critic'}"
            )


def _check_names(module: PPOModule, saved: set[str]) -> None:
    """Loading is not strict, since frozen weights are absent: make sure that everything else is there."""
    wanted = trainable_names(module)
    if saved != wanted:
        missing, surplus = sorted(wanted - saved), sorted(saved - wanted)
        detail = "; ".join(
            f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for what, names in (("missing", missing), ("not in this run", surplus))
            if names
        )
        raise ResumeError(
            f"the checkpoint's trained parts differ ({detail}): give the same lora, critic and task_encoder"
        )
