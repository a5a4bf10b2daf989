"""Why a task gets its weights: ``python -m lightning_dterm.dterm.explain --ckpt PATH --description TEXT``.

Reads a checkpoint of a run whose weighting is a hypernetwork, and the run's ``config.yaml`` beside it, for the task
encoder and the training tasks. Neither the actor nor any program is loaded or run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_dterm.checkpointing import atomic_write
from lightning_dterm.dterm.canvas import Picture, printable
from lightning_dterm.dterm.encoder import TaskEncoder
from lightning_dterm.dterm.pictures import bars_picture
from lightning_dterm.dterm.trained import ExplainError, Trained, read_checkpoint, read_config, restore, training_tasks
from lightning_dterm.types import CodeTask

if TYPE_CHECKING:
    from rich.table import Table

_SUFFIXES = (".svg", ".png", ".html")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the hypernetwork makes of one task; n components, m prototypes.

    Attributes:
        names: The components.
        weights: ``[n]``, 0 where masked, sum 1.
        prior: ``[n]`` alpha_0, likewise.
        mask: ``[n]`` bool, False where the component does not apply.
        attention: ``[m]`` over the prototypes, sum 1.
        film: Kind, and gain and shift per component ``[n]`` (for ``monotone`` the gain is the factor gamma of the
            score's logit, else the factor of the score); None without FiLM.
    """

    names: tuple[str, ...]
    weights: Tensor
    prior: Tensor
    mask: Tensor
    attention: Tensor
    film: tuple[str, Tensor, Tensor] | None


@torch.no_grad()
def explain(trained: Trained, task: CodeTask, known_type: bool) -> Explanation:
    """Weights, attention and FiLM of one task.

    Args:
        trained: What :func:`restore` gives.
        task: Its description (and image) is what counts.
        known_type: Mask the components that never applied to the task's type.

    Raises:
        ExplainError: The type was not trained on, or the image cannot be read.
    """
    weighting = trained.weighting
    network = weighting.hypernetwork
    assert network is not None
    mask = torch.ones(len(weighting.component_names), dtype=torch.bool)
    if known_type:
        if task.task_type not in trained.applicable:
            raise ExplainError(
                f"the hypernetwork has not learned from task type {task.task_type!r} (it has from "
                f"{', '.join(sorted(trained.applicable)) or 'none yet'}): leave --task_type out to see the weights "
                "with every component applicable"
            )
        mask = trained.applicable[task.task_type]
    try:
        embedding = trained.encoder.encode_tasks([task])
    except ValueError as error:
        raise ExplainError(str(error)) from error
    film = None
    if network.film is not None:
        gain, shift = network.film.parameters_of(network.features(embedding))
        film = (network.film.kind, (gain.exp() if network.film.kind == "monotone" else 1 + gain)[0], shift[0])
    return Explanation(
        weighting.component_names,
        weighting(embedding, mask[None], [task.task_type])[0],
        network.prior_weights(mask[None])[0],
        mask,
        network.attention_weights(embedding)[0].float(),
        film,
    )


def nearest(encoder: TaskEncoder, task: CodeTask, others: Sequence[CodeTask], top: int) -> list[tuple[float, CodeTask]]:
    """The ``top`` tasks whose embeddings have the highest cosine with ``task``'s, one per distinct description."""
    distinct = list({(other.description, other.task_type): other for other in reversed(others)}.values())[::-1]
    if not distinct:
        return []
    own, rest = encoder.encode_tasks([task]), encoder.encode_tasks(distinct)
    cosine = torch.nn.functional.cosine_similarity(own, rest)
    order = cosine.argsort(descending=True, stable=True)[:top].tolist()
    return [(float(cosine[row]), distinct[row]) for row in order]


def tables(found: Explanation, near: Sequence[tuple[float, CodeTask]], top: int) -> list[Table]:
    """Weights, the ``top`` prototypes by attention, and the nearest training tasks, as rich tables."""
    from rich.table import Table
    from rich.text import Text

    weights = Table(title="weights")
    for column in ("component", "weight", "prior", "", *(("FiLM scale", "FiLM shift") if found.film else ())):
        weights.add_column(column, justify="left" if column in ("component", "") else "right")
    for place, name in enumerate(found.names):
        cells = [f"{float(found.weights[place]):.3f}", f"{float(found.prior[place]):.3f}"]
        cells.append("█" * round(24 * float(found.weights[place])))
        if found.film:
            cells += [f"{float(part[place]):.3f}" for part in found.film[1:]]
        if not found.mask[place]:
            cells = ["masked", "", "not applicable to this task type", *([""] * (len(cells) - 3))]
        weights.add_row(Text(printable(name)), *cells)
    if found.film:
        weights.caption = f"FiLM: {found.film[0]}; scale 1 and shift 0 leave a score as it is"
    attention = Table(title=f"attention over {len(found.attention)} prototypes")
    attention.add_column("prototype")
    attention.add_column("attention", justify="right")
    attention.add_column("")
    for place in found.attention.argsort(descending=True, stable=True)[:top].tolist():
        share = float(found.attention[place])
        attention.add_row(str(place), f"{share:.3f}", "█" * round(24 * share))
    entropy = float(torch.special.entr(found.attention).sum())
    attention.caption = f"entropy {entropy:.2f} nats of at most {torch.tensor(float(len(found.attention))).log():.2f}"
    parts = [weights, attention]
    if near:
        tasks = Table(title="nearest training tasks")
        tasks.add_column("cosine", justify="right")
        tasks.add_column("task type")
        tasks.add_column("description")
        for cosine, task in near:
            text = printable(" ".join(task.description.split()))
            tasks.add_row(f"{cosine:.3f}", Text(printable(task.task_type)), Text(text[:160]))
        parts.append(tasks)
    return parts


def picture(found: Explanation, description: str, top: int) -> Picture:
    """Bars: the weights, the prior marked in each, and the ``top`` attentions."""
    bars = zip(found.names, found.weights.tolist(), found.prior.tolist(), found.mask.tolist(), strict=True)
    weights = [(name if given else f"{name} (masked)", weight, prior) for name, weight, prior, given in bars]
    order = found.attention.argsort(descending=True, stable=True)[:top].tolist()
    attention = [(f"prototype {place}", float(found.attention[place]), None) for place in order]
    title = " ".join(description.split())
    title = title if len(title) <= 80 else f"{title[:77]}..."
    return bars_picture(title, {"weights (stroke: the prior)": weights, "attention": attention})


def _write(path: Path, drawn: Picture) -> None:
    content = drawn.png() if path.suffix == ".png" else drawn.svg().encode()
    if path.suffix == ".html":
        content = (
            b'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>explain</title>\n%s</html>\n' % content
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m lightning_dterm.dterm.explain",
        description="What a trained hypernetwork makes of a task: weights, prototypes, FiLM, nearest training tasks.",
    )
    found.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a run with HypernetworkWeighting")
    found.add_argument("--description", required=True, help="what the task encoder reads")
    found.add_argument("--task_type", help="mask the components that do not apply to tasks of this type")
    found.add_argument("--image", type=Path, help="image of the task, for encoders that read one")
    found.add_argument("--config", type=Path, help="the run's config.yaml; default: beside the checkpoint or above")
    found.add_argument("--out", type=Path, help="write a picture: .svg, .png or .html")
    found.add_argument("--top", type=int, default=5, help="prototypes and training tasks shown; default: 5")
    found.add_argument("--tasks", type=int, default=2000, help="training tasks compared; default: 2000, 0 for none")
    return found


def run(options: argparse.Namespace) -> None:
    """Explain one description.

    Raises:
        ExplainError: The input is at fault.
    """
    from rich.console import Console

    if options.top < 1 or options.tasks < 0:
        raise ExplainError("--top must be at least 1 and --tasks not negative")
    if options.out is not None and options.out.suffix not in _SUFFIXES:
        raise ExplainError(f"--out must end in {', '.join(_SUFFIXES)}, got {options.out}")
    checkpoint = read_checkpoint(options.ckpt)
    config = read_config(options.ckpt, options.config)
    trained = restore(checkpoint, config)
    task = CodeTask("explain", options.task_type or "", "python", "", options.description, "")
    if options.image is not None:
        if type(trained.encoder).features is TaskEncoder.features:
            raise ExplainError(f"the run's {type(trained.encoder).__name__} reads no images: leave --image out")
        task = replace(task, image=str(options.image.resolve()))
    found = explain(trained, task, options.task_type is not None)
    near: list[tuple[float, CodeTask]] = []
    missing = ""
    if options.tasks:
        try:
            near = nearest(trained.encoder, task, training_tasks(config, checkpoint, options.tasks), options.top)
        except ExplainError as error:
            missing = f"no nearest training tasks: {error}"
    console = Console(highlight=False)
    for table in tables(found, near, options.top):
        console.print(table)
    if missing:
        console.print(missing, markup=False)
    if options.out is not None:
        _write(options.out, picture(found, options.description, options.top))
        console.print(f"picture: {options.out}", markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the explanation, and write the picture where asked.

    Raises:
        SystemExit: 2 after one line on stderr where the input is at fault.
    """
    try:
        run(parser().parse_args(arguments))
    except (ExplainError, OSError) as error:
        print(f"lightning-dterm: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
