"""A trained weighting and its task encoder, from a checkpoint and the run's configuration alone.

Neither the actor nor any program is loaded or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dterm.checkpointing import check_ckpt_path
from lightning_dterm.dterm.encoder import HashingEncoder, TaskEncoder
from lightning_dterm.dterm.weighting import HypernetworkWeighting, Weighting
from lightning_dterm.types import CodeTask

_KEY = "lightning_dterm"  # where PPOModule keeps its state in a checkpoint


class ExplainError(ValueError):
    """The input is at fault; the message says what and what to do."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a checkpoint knows of tasks.

    Attributes:
        weighting: With the trained hypernetwork.
        encoder: The run's task encoder, trained where it trains.
        applicable: Task type to ``[n]`` bool, components that applied to any remembered group of it.
    """

    weighting: HypernetworkWeighting
    encoder: TaskEncoder
    applicable: dict[str, Tensor]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of PPOModule with a hypernetwork.

    Raises:
        ExplainError: It is none.
    """
    if path.is_dir():
        raise ExplainError(f"{path} is a folder (sharded by FSDP2?): name a checkpoint that is one file")
    problem = check_ckpt_path(str(path))
    if problem is not None or not path.is_file():
        raise ExplainError(problem or f"checkpoint not found: {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the unpickler raises whatever damaged bytes make it raise
        raise ExplainError(f"not a checkpoint, or not whole: {path} ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(checkpoint, dict) or _KEY not in checkpoint:
        raise ExplainError(f"{path} was not written by PPOModule: only its runs have reward weights to explain")
    kind = checkpoint[_KEY].get("settings", {}).get("weighting", "")
    if not any(name.startswith("weighting.hypernetwork.") for name in checkpoint["state_dict"]):
        raise ExplainError(
            f"{path} has no hypernetwork: its weights{f' ({kind})' if kind else ''} are not generated from the task; "
            "train with -c configs/weighting/hypernetwork.yaml"
        )
    return checkpoint


def read_config(checkpoint: Path, given: Path | None) -> dict[str, Any]:
    """The run's configuration: ``given``, or ``config.yaml`` beside the checkpoint or one folder above.

    Raises:
        ExplainError: There is none, or it is not one of a run.
    """
    import yaml  # type: ignore[import-untyped]

    places = [folder / "config.yaml" for folder in checkpoint.resolve().parents[:2]] if given is None else [given]
    source = next((place for place in places if place.is_file()), None)
    if source is None:
        where = f"no config.yaml beside {checkpoint} or above it" if given is None else f"{given} does not exist"
        raise ExplainError(f"{where}: name the run's with --config")
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        settings = content["model"]["init_args"]
        return {**content, "model": {**content["model"], "init_args": dict(settings)}}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ExplainError(f"{source} is not the configuration of a run (no model.init_args): {error}") from error


def make(kind: type, settings: Any, what: str) -> Any:
    """An object named by class_path in a configuration.

    Raises:
        ExplainError: It cannot be made.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    try:
        build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the latter's name before 4.49
        return build(parser.parse_object({"it": settings})).it
    except Exception as error:  # constructors of users' classes raise what they like; all that is wanted is the reason
        cause = error.__cause__ or error
        reason = " ".join(str(cause if isinstance(cause, (FileNotFoundError, ValueError)) else error).split())
        raise ExplainError(f"the run's {what} cannot be made: {reason}") from error


def restore(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> Trained:
    """Weighting and task encoder as the checkpoint left them.

    Raises:
        ExplainError: The encoder is missing or another one, or the configuration does not fit the checkpoint.
    """
    settings, state = config["model"]["init_args"], checkpoint[_KEY]
    encoder: TaskEncoder = HashingEncoder()
    if settings.get("task_encoder") is not None:
        encoder = make(TaskEncoder, settings["task_encoder"], "task encoder")
    encoder.eval()
    saved = state.get("settings", {})
    wanted = (saved.get("task_encoder's width", encoder.dim), saved.get("task_encoder's identity", encoder.identity))
    if wanted != (encoder.dim, encoder.identity):
        raise ExplainError(
            f"the task encoder is not the one that the run was trained with ({type(encoder).__name__}, d = "
            f"{encoder.dim}; the run's was {saved.get('task_encoder')}, d = {wanted[0]}): give its config.yaml with "
            "--config, and the same model at the path it names"
        )
    weighting = make(Weighting, settings["weighting"], "weighting") if settings.get("weighting") else None
    if not isinstance(weighting, HypernetworkWeighting):
        raise ExplainError("the configuration's weighting is no hypernetwork: give the run's own with --config")
    weighting.configure(state["component_names"], encoder.dim)
    for name, owner in (("weighting", weighting), ("task_encoder", encoder)):
        _load(name, owner, checkpoint["state_dict"])
    applicable = {
        task_type: columns[1].any(0)
        for extra in state["weighting"].values()
        for task_type, columns in extra.get("recent", {}).items()
    }
    return Trained(weighting, encoder, applicable)


def _load(name: str, owner: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load what the checkpoint has of ``owner``: all that trains must be there; frozen weights are not saved."""
    part = {key[len(name) + 1 :]: value for key, value in saved.items() if key.startswith(f"{name}.")}
    try:
        surplus = set(owner.load_state_dict(part, strict=False).unexpected_keys)
    except RuntimeError as error:
        raise ExplainError(f"the configuration's {name} does not fit the checkpoint: {error}") from error
    own = {key for key, parameter in owner.named_parameters() if parameter.requires_grad}
    if differing := sorted((own - part.keys()) | surplus):
        raise ExplainError(
            f"the configuration's {name} does not fit the checkpoint (they differ in {differing[0]}): give the run's "
            "own config.yaml with --config"
        )


def training_tasks(config: Mapping[str, Any], checkpoint: Mapping[str, Any], count: int) -> list[CodeTask]:
    """At most ``count`` tasks, evenly over the run's training split, which its configuration makes anew.

    Raises:
        ExplainError: The data are not there.
    """
    from lightning_dterm.data import CodeDataModule

    if not config.get("data"):
        raise ExplainError("the configuration names no data")
    data: CodeDataModule = make(CodeDataModule, config["data"], "data")
    if data.follows_seed:
        data.seed = int(checkpoint.get(type(data).__qualname__, {}).get("seed", data.seed))
    try:
        tasks = data.train_tasks()
        limit = data._limits["train"]
        size = len(tasks) if limit is None else min(limit, len(tasks))
        return [tasks[row] for row in range(0, size, max(1, -(-size // count)))]
    except Exception as error:  # files that are gone or malformed, in whatever way
        raise ExplainError(f"the run's training data cannot be read: {' '.join(str(error).split())}") from error
