from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger
from markdown import markdown
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dterm.callbacks import SampleTableLogger
from lightning_dterm.callbacks.samples import escape, fenced, pick_rows, render_samples
from lightning_dterm.types import CodeTask, Rollout


def rollout_of(*entries: tuple[str, int, str]) -> Rollout:
    """One row a (task type, group, completion)."""
    rows = len(entries)
    tasks = [CodeTask(f"t{g}", kind, "python", f"prompt {g}", "d", "r") for kind, g, _ in entries]
    mask = torch.zeros(rows, 5, dtype=torch.long)
    mask[:, :3] = 1
    return Rollout(
        tasks=tasks,
        group=torch.tensor([g for _, g, _ in entries]),
        prompt_ids=torch.zeros(rows, 1, dtype=torch.long),
        prompt_mask=torch.ones(rows, 1, dtype=torch.long),
        response_ids=torch.zeros(rows, 5, dtype=torch.long),
        response_mask=mask,
        finished=torch.tensor([True] + [False] * (rows - 1)),
        texts=[text for _, _, text in entries],
        component_names=("compile", "tests"),
        scores=torch.tensor([[0.5, 1.0]] + [[0.25, math.nan]] * (rows - 1)),
        alpha=torch.tensor([[0.4, 0.6]] + [[1.0, 0.0]] * (rows - 1)),
        outcome=torch.tensor([1.0] + [math.nan] * (rows - 1)),
    )


def table_rows(document: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in document.splitlines() if line.startswith("|")]


def test_table_shows_scores_weights_and_total() -> None:
    rollout = rollout_of(("repair", 0, "return a + b"), ("synthesis", 1, "x"))
    document = render_samples(rollout, [0, 1], 100, "Rollout 3")
    head, _, first, second = table_rows(document)
    assert head == ["#", "task", "type", "completion", "compile", "tests", "total", "success", "tokens"]
    assert first[4:] == ["0.50 x 0.40", "1.00 x 0.60", "0.800", "1.00", "3"]
    assert second[4:] == ["0.25 x 1.00", "-", "0.250", "-", "3 (cut)"]
    assert "```python\nreturn a + b\n```" in document
    assert "prompt 1" in document


def test_rows_take_types_in_turn_and_prompts_before_repeats() -> None:
    rollout = rollout_of(
        ("repair", 0, "a"), ("repair", 0, "b"), ("repair", 1, "c"), ("repair", 1, "d"), ("synthesis", 2, "e")
    )
    assert pick_rows(rollout, 3) == [0, 4, 2]
    assert pick_rows(rollout, 99) == [0, 4, 2, 1, 3]


HOSTILE = st.text(alphabet=st.sampled_from(list("a1 |`*_<>[]()#\\\n\r\t&;!~\x00\x1b\u2028\ud800é漢")), max_size=60)


@given(HOSTILE)
def test_cells_cannot_break_the_table_or_inject_markup(text: str) -> None:
    document = render_samples(rollout_of(("repair", 0, text), ("repair", 1, "x")), [0, 1], 200, "T")
    html = markdown(document.partition("Components are")[0].partition("\n")[2], extensions=["tables"])
    assert html.count("<tr>") == 3
    assert html.count("<td>") + html.count("<th>") == 27
    assert set(re.findall(r"</?(\w+)", html)) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert html.count("<code>") == 2
    # TensorBoard's own reading of the whole: two prompts and two completions, each in its block, and nothing else.
    html = markdown(document, extensions=["tables", "fenced_code"])
    assert len(re.findall(r"<pre><code", html)) == 4
    outside = re.sub(r"<pre><code.*?</code></pre>", "", html, flags=re.DOTALL)
    assert set(re.findall(r"</?(\w+)", outside)) <= {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "h1",
        "h2",
        "p",
        "em",
    }


@given(HOSTILE)
def test_fence_holds_whatever_is_in_it(text: str) -> None:
    block = fenced(text, "python", 200)
    lines = block.split("\n")
    fence = lines[0].removesuffix("python")
    assert set(fence) == {"`"}
    assert lines[-1] == fence
    assert not any(line.strip().startswith(fence) for line in lines[1:-1])
    assert not re.search(r"[\x00\x1b\u2028]", block)


def test_long_text_is_cut_and_says_so() -> None:
    assert "(15 more characters)" in fenced("x" * 20, "python", 5)
    assert "x" * 6 not in fenced("x" * 20, "python", 5)


def test_escape_keeps_words_readable() -> None:
    assert escape("plain words, 1.5 - ok") == "plain words, 1.5 - ok"
    assert escape("<b>|") == "&#60;b&#62;&#124;"


def fake_trainer(folder: Path, batch: int, rank: int = 0) -> Any:
    logger = TensorBoardLogger(str(folder), name=None, version="")
    return SimpleNamespace(
        fit_loop=SimpleNamespace(total_batch_idx=batch),
        is_global_zero=rank == 0,
        log_dir=str(folder),
        default_root_dir=str(folder),
        loggers=[logger],
        callbacks=[],
        close=lambda: logger.finalize("success"),
    )


def test_files_and_tensorboard_every_n_rollouts(tmp_path: Path) -> None:
    callback = SampleTableLogger(every_n_rollouts=3, num_samples=1)
    rollout = rollout_of(("repair", 0, "return 1"), ("repair", 1, "second"))
    for batch in range(5):
        trainer = fake_trainer(tmp_path, batch)
        callback.on_update_end(trainer, None, rollout)  # type: ignore[arg-type]
        trainer.close()
    written = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert written == ["step_000001.md", "step_000004.md"]
    text = (tmp_path / "samples" / "step_000004.md").read_text()
    assert "return 1" in text
    assert "second" not in text
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    # files are read in the order of their names, in which 10 comes before 9
    logged = sorted(accumulator.Tensors("samples/text_summary"), key=lambda event: int(event.step))
    assert [event.step for event in logged] == [1, 4]
    assert logged[1].tensor_proto.string_val[0].decode() == text


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    callback = SampleTableLogger(every_n_rollouts=1)
    callback.on_update_end(fake_trainer(tmp_path, 0, rank=1), None, rollout_of(("repair", 0, "x")))  # type: ignore[arg-type]
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("name", ["every_n_rollouts", "num_samples", "max_chars"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SampleTableLogger(**{name: 0})


def test_what_rewards_log_is_shown_below_its_completion() -> None:
    rollout = rollout_of(("repair", 0, "first"), ("repair", 1, "second"))
    document = render_samples(rollout, [1, 0], 12, "R", {"judge/why": [None, "<b>too long a story"]})
    assert document.index("second") < document.index("judge/why") < document.index("## 2")
    assert "<b>" not in document
    assert "too long" in document
    assert "story" not in document
