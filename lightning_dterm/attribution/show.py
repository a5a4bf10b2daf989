"""Shows token heat maps: ``python -m lightning_dterm.attribution.show SOURCE``.

SOURCE is a file that ``HeatMapLogger`` wrote (``heatmaps/step_*.json``), a run's folder (its newest such file), or a
checkpoint (``.ckpt``), whose policy then answers validation tasks with the run's own data, rewards and attribution.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_dterm.attribution.heatmap import HeatMap, HeatMapError, read_json
from lightning_dterm.attribution.render import TerminalHeatMap, html_page, shown_whole
from lightning_dterm.checkpointing import atomic_write

_RUN_KEYS = ("seed_everything", "trainer", "model", "data")
"""Parts of a run's ``config.yaml`` that say what the run is; the rest belongs to ``fit``."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m lightning_dterm.attribution.show",
        description="Token heat maps of completions: one row a reward component, then total, advantage and value.",
    )
    found.add_argument("source", type=Path, help="heatmaps/step_*.json, a run's folder, or a checkpoint (.ckpt)")
    found.add_argument("--html", type=Path, help="write this self-contained page, too")
    found.add_argument("--task", action="append", metavar="ID", help="only this task; may be repeated")
    found.add_argument("--width", type=int, help="columns of the terminal rendering; default: the terminal's")
    checkpoint = found.add_argument_group("for a checkpoint")
    checkpoint.add_argument("--config", action="append", help="default: config.yaml of the run it lies in")
    checkpoint.add_argument("--tasks", type=int, help="number of validation tasks; default: 4")
    checkpoint.add_argument("--temperature", type=float, help="of sampling; default: 0, greedy")
    return found


def newest(folder: Path) -> Path:
    """The heat map of the highest step below a run's folder.

    Raises:
        HeatMapError: There is none.
    """
    files = sorted(folder.glob("heatmaps/step_*.json")) or sorted(folder.glob("step_*.json"))
    if not files:
        raise HeatMapError(
            f"{folder} has no heatmaps/step_*.json: add lightning_dterm.callbacks.HeatMapLogger to the run "
            "(-c configs/attribution/heatmap.yaml), or name one of its checkpoints"
        )
    return files[-1]


def run_config(checkpoint: Path, folder: Path) -> Path:
    """What the checkpoint's run was, for ``validate``: its ``config.yaml`` without what belongs to ``fit`` alone.

    Args:
        checkpoint: The checkpoint, ``<run>/checkpoints/<name>.ckpt``.
        folder: Where to write the result.

    Raises:
        HeatMapError: The run's configuration is not there, or not a mapping.
    """
    import yaml  # type: ignore[import-untyped]

    source = next(
        (up / "config.yaml" for up in checkpoint.resolve().parents[:2] if (up / "config.yaml").is_file()), None
    )
    if source is None:
        raise HeatMapError(f"no config.yaml beside {checkpoint} or above it: name the run's with --config")
    content: Any = yaml.safe_load(source.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise HeatMapError(f"{source} is not a run's configuration")
    target = folder / "config.yaml"
    target.write_text(yaml.safe_dump({key: content[key] for key in _RUN_KEYS if key in content}), encoding="utf-8")
    return target


def answer(options: argparse.Namespace, folder: Path) -> Path:
    """Let the checkpoint answer tasks through ``validate``; gives the file of heat maps.

    Raises:
        SystemExit: The configuration or checkpoint is at fault; one line says how.
    """
    from lightning_dterm.cli import main as command_line

    configs = options.config or [str(run_config(options.source, folder))]
    chosen = {
        "task_ids": None if options.task is None else list(options.task),
        "num_tasks": options.tasks,
        "temperature": options.temperature,
        "folder": str(folder),
    }
    arguments = ["validate", *(word for config in configs for word in ("--config", str(config)))]
    arguments += ["--ckpt_path", str(options.source), "--verbose", "false", "--trainer.logger", "false"]
    arguments += ["--trainer.default_root_dir", str(folder), "--trainer.limit_val_batches", "1"]
    arguments += ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    arguments.append("--trainer.callbacks+=lightning_dterm.callbacks.HeatMapLogger")
    for name, value in chosen.items():
        if value is not None:
            arguments.append(f"--trainer.callbacks.init_args.{name}={value}")
    command_line(arguments)
    return newest(folder)


def chosen(maps: Sequence[HeatMap], tasks: Sequence[str] | None) -> list[HeatMap]:
    """The maps of ``tasks``, or all.

    Raises:
        HeatMapError: A task is not among them.
    """
    if tasks is None:
        return list(maps)
    missing = [task for task in tasks if all(one.task_id != task for one in maps)]
    if missing:
        raise HeatMapError(f"no heat map of {', '.join(missing)}; there are {', '.join(one.task_id for one in maps)}")
    return [one for task in tasks for one in maps if one.task_id == task]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print heat maps, and write a page where asked.

    Raises:
        SystemExit: 2 after one line on stderr where the input is at fault.
    """
    from rich.console import Console

    options = parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="lightning-dterm-show-") as scratch:
            title, maps = _load(options, Path(scratch))
        console = Console(width=options.width, highlight=False)
        console.print(shown_whole(title), style="bold", markup=False)
        for heat_map in maps:
            console.print(TerminalHeatMap(heat_map))
        if options.html is not None:
            options.html.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(options.html) as file:
                file.write(html_page(title, maps).encode("utf-8", "replace"))
            console.print(f"page: {options.html}", markup=False)
    except (HeatMapError, OSError) as error:
        print(f"lightning-dterm: error: {shown_whole(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error


def _load(options: argparse.Namespace, scratch: Path) -> tuple[str, list[HeatMap]]:
    source: Path = options.source
    if source.suffix == ".ckpt":
        _, maps = read_json(answer(options, scratch))
        return f"{source}", chosen(maps, options.task)
    for name in ("config", "tasks", "temperature"):
        if getattr(options, name) is not None:
            raise HeatMapError(f"--{name} is for checkpoints: {source} holds answers already")
    if not source.exists():
        raise HeatMapError(f"{source} does not exist")
    title, maps = read_json(newest(source) if source.is_dir() else source)
    return title, chosen(maps, options.task)


if __name__ == "__main__":
    main()
