"""Generation that stays within the grammar of each task's language, as the settings ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_dterm.syntax import SyntaxLogitsProcessor, checker_for, supports
from lightning_dterm.types import CodeTask

_REMEDY = "set generation.constrain and eval_constrain to none, or leave such tasks out"


def syntax_processor(
    tokenizer: Any, tasks: Sequence[CodeTask], prompt_length: int, eos_ids: Sequence[int], temperature: float
) -> SyntaxLogitsProcessor:
    """A processor that keeps the answers to ``tasks`` in their languages; prose (language ``text``) stays free.

    Args:
        tokenizer: Of the actor.
        tasks: One a row.
        prompt_length: Columns of the padded prompts.
        eos_ids: Tokens that end a response.
        temperature: Of sampling; 0 is greedy.

    Raises:
        ValueError: If a task's language has no checker, or no program starts with its prefix; the message names the
            task.
    """
    languages: list[str | None] = [None if task.language == "text" else task.language for task in tasks]
    for task, language in zip(tasks, languages, strict=True):
        if language is not None and not supports(language):
            raise ValueError(f"task {task.task_id}: no grammar of {language} to constrain generation by; {_REMEDY}")
        if language is not None and task.prefix and not checker_for(language).viable(task.prefix):
            raise ValueError(f"task {task.task_id}: no {language} program starts with the task's prefix; {_REMEDY}")
    prefixes = [task.prefix for task in tasks]
    if temperature == 0:
        return SyntaxLogitsProcessor(tokenizer, languages, prompt_length, eos_ids, prefixes, mask=True, top_p=0.0)
    return SyntaxLogitsProcessor(
        tokenizer, languages, prompt_length, eos_ids, prefixes, mask=True, temperature=temperature
    )
