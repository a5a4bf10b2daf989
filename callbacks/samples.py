"""Tables of sample completions with their rewards, for people to read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_dterm.callbacks.rewards import RewardComputation
from lightning_dterm.checkpointing import atomic_write
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.types import Rollout

_INERT = frozenset(" .,-/=+()?'%")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class SampleTableLogger(RolloutCallback):
    """Every ``every_n_rollouts`` writes sample completions with scores, weights and totals.

    The same Markdown goes to ``<log_dir>/samples/step_XXXXXX.md`` and to TensorBoard's text page (tag ``samples``): a
    table with one row a sample - each component as ``score x alpha``, the total, the task's own success - and below it
    every completion in full, with what rewards logged of it. Rank 0 shows samples of its own share.

    Args:
        every_n_rollouts: Rollouts between two tables; the first rollout has one.
        num_samples: Rows; task types take turns, and different prompts come before further samples of one prompt.
        max_chars: Longer completions and prompts are cut there, and say so.
    """

    def __init__(self, every_n_rollouts: int = 10, num_samples: int = 8, max_chars: int = 2000) -> None:
        values = {"every_n_rollouts": every_n_rollouts, "num_samples": num_samples, "max_chars": max_chars}
        for name, value in values.items():
            if value < 1:
                raise ValueError(f"SampleTableLogger: {name} must be at least 1, got {value}")
        self.every_n_rollouts = every_n_rollouts
        self.num_samples = num_samples
        self.max_chars = max_chars

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Write the table where one is due (counted from the start of the run, so that a resumed run keeps step)."""
        index = trainer.fit_loop.total_batch_idx
        if index % self.every_n_rollouts:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"  # a broadcast: every rank must ask
        if not trainer.is_global_zero:
            return
        step = index + 1
        logged = next((c.columns for c in trainer.callbacks if isinstance(c, RewardComputation)), None)  # type: ignore[attr-defined]
        rows = pick_rows(rollout, self.num_samples)
        document = render_samples(rollout, rows, self.max_chars, f"Rollout {step}", logged)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"step_{step:06d}.md") as file:
            file.write(document.encode("utf-8", "replace"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", document, step)


def pick_rows(rollout: Rollout, count: int) -> list[int]:
    """Up to ``count`` rows of the rollout: task types in turn, within a type each prompt before any prompt's second."""
    seen: dict[int, int] = {}
    queues: dict[str, list[tuple[int, int]]] = {}
    for row, (task, group) in enumerate(zip(rollout.tasks, rollout.group.tolist(), strict=True)):
        rank = seen[group] = seen.get(group, -1) + 1
        queues.setdefault(task.task_type, []).append((rank, row))
    for queue in queues.values():
        queue.sort()
    picked: list[int] = []
    while len(picked) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(picked) < count:
                picked.append(queue.pop(0)[1])
    return picked


def render_samples(
    rollout: Rollout,
    rows: Sequence[int],
    max_chars: int,
    title: str,
    logged: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """Markdown of the chosen rows. Model-written text cannot break out of its cell or fence.

    Args:
        rollout: With scores.
        rows: Which samples, in order.
        max_chars: Longer texts are cut there.
        title: Of the page.
        logged: What components logged, a value per sample of the rollout; shown below each completion.
    """
    names = rollout.component_names
    head = ["#", "task", "type", "completion", *map(escape, names), "total", "success", "tokens"]
    lines = [f"# {title}", "", _row(head), _row(["---"] * len(head))]
    lines += [_row([str(number), *_cells(rollout, row)]) for number, row in enumerate(rows, 1)]
    lines += ["", "Components are *score x weight*; their sum is the total. A dash: not applicable.", ""]
    for number, row in enumerate(rows, 1):
        task = rollout.tasks[row]
        lines += [f"## {number}: {escape(task.task_id)}", "", "Prompt:", "", fenced(task.prompt, "", max_chars), ""]
        lines += ["Completion:", "", fenced(rollout.texts[row], task.language, max_chars), ""]
        shown = {key: values[row] for key, values in (logged or {}).items() if values[row] is not None}
        lines += [f"- {escape(key)}: {escape(str(value)[:max_chars])}" for key, value in shown.items()]
        lines += [""] if shown else []
    return "\n".join(lines)


def _cells(rollout: Rollout, row: int) -> list[str]:
    task = rollout.tasks[row]
    text = rollout.texts[row]
    preview = " ".join(text.split())
    preview = preview if len(preview) <= 60 else preview[:57] + "..."
    cells = [escape(task.task_id), escape(task.task_type), f"<code>{escape(preview)}</code>"]
    total = 0.0
    for column in range(len(rollout.component_names)):
        score = float(rollout.weighed[row, column]) if rollout.weighed is not None else math.nan
        alpha = float(rollout.alpha[row, column]) if rollout.alpha is not None else math.nan
        cells.append("-" if math.isnan(score) else f"{score:.2f} x {alpha:.2f}")
        total += 0.0 if math.isnan(score) or math.isnan(alpha) else score * alpha
    success = float(rollout.outcome[row]) if rollout.outcome is not None else math.nan
    known = rollout.weighed is not None and rollout.alpha is not None
    tokens = int(rollout.response_mask[row].sum())
    ended = "" if bool(rollout.finished[row]) else " (cut)"
    return [
        *cells,
        f"{total:.3f}" if known else "-",
        "-" if math.isnan(success) else f"{success:.2f}",
        f"{tokens}{ended}",
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def escape(text: str) -> str:
    """``text`` as inert inline Markdown on one line: what could be markup becomes entities."""
    plain = _CONTROL.sub(" ", text).replace("\n", " ").replace("\t", " ")
    return "".join(c if c.isalnum() or c in _INERT or c == "\ufffd" else _entity(c) for c in plain)


def _entity(character: str) -> str:
    """The numeric entity of a character; surrogates, which no file can hold, become a question mark."""
    return "?" if 0xD800 <= ord(character) <= 0xDFFF else f"&#{ord(character)};"


def fenced(text: str, language: str, max_chars: int) -> str:
    """``text`` in a fence longer than any run of backticks in it."""
    shown = _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))
    note = ""
    if len(shown) > max_chars:
        note = f"\n\n({len(shown) - max_chars} more characters)"
        shown = shown[:max_chars]
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    label = re.sub(r"[^a-z0-9]", "", language.lower())
    return f"{fence}{label}\n{shown}\n{fence}{note}"
