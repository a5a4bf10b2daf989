"""What every module that holds a code model shares: prompts in, completions out, evaluation, prediction, export."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_dterm.evaluation import Evaluator, format_table, write_completions_jsonl, write_json
from lightning_dterm.metrics import FIGURES, SampleRecord, SampleTable
from lightning_dterm.modules.config import Constraint, GenerationConfig, resolve_seed
from lightning_dterm.modules.constraint import syntax_processor
from lightning_dterm.modules.distributed import (
    all_gather,
    all_sum,
    global_order,
    leave_process_group_at_exit,
    rank,
    together,
)
from lightning_dterm.modules.loading import read_tokenizer, save_tokenizer, with_pad_token
from lightning_dterm.rl.generation import Responses, generate, sample_uniforms
from lightning_dterm.syntax import SyntaxLogitsProcessor
from lightning_dterm.types import CodeTask

Key = Sequence[object]


class Completions(NamedTuple):
    """Decoded ``texts``, their ``lengths`` in tokens and whether each was ``truncated`` at the length limit."""

    texts: list[str]
    lengths: list[int]
    truncated: list[bool]


class CodeModule(L.LightningModule):
    """Base of :class:`PPOModule` and :class:`SupervisedModule`.

    Args:
        path: Folder, hub id or ``package:NAME`` the tokenizer is loaded from.
        generation: Sampling settings.
        seed: All randomness of the module derives from it. None follows ``seed_everything`` (0 where that was not
            called), and after a resume the seed of the checkpoint.
        results: File for the JSON table of ``test``; default ``<log_dir>/test.json``.
    """

    def __init__(self, path: str, generation: GenerationConfig, seed: int | None, results: str | None = None) -> None:
        super().__init__()
        tokenizer = read_tokenizer(path)
        self._own_pad_token: str | None = tokenizer.pad_token
        self.tokenizer: PreTrainedTokenizerBase = with_pad_token(tokenizer)
        self.generation = generation
        self.follows_seed = seed is None
        self.seed = resolve_seed(seed)
        self.results = results
        self.overlong_prompts = 0  # of all ranks in training, the same on each
        self.table = SampleTable()
        self._evaluator: Evaluator | None = None

    def setup(self, stage: str) -> None:
        """Arrange for a clean end of the process group, if there is one, and for one seed on all ranks."""
        leave_process_group_at_exit()
        if self.follows_seed:
            self.seed = all_gather(self.seed)[0]  # a script may have seeded every process differently

    @property
    def language_model(self) -> PreTrainedModel:
        """The model that generates."""
        raise AttributeError(f"{type(self).__name__} has no language model")

    # --- prompts and completions -------------------------------------------------------------------------------------

    def encode_prompts(self, tasks: Sequence[CodeTask], count: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[B, P]`` of the tasks' prompts, left-padded; over-long ones lose their beginning.

        A collective: every rank must call, those without a task as well.

        Args:
            tasks: B tasks.
            count: These are training prompts: add the cut ones of all ranks to ``overlong_prompts``.

        Raises:
            ValueError: If a prompt has no token; the message names the task.
            ProcessFailed: If one of another rank has none.
        """
        limit = self.generation.max_prompt_length
        encoded = together(self._prompt_tokens, tasks)
        if count:
            cut = sum(len(ids) > limit for ids in encoded)
            self.overlong_prompts += int(all_sum(torch.tensor(cut, device=self.device)))
        rows = [ids[-limit:] for ids in encoded]
        width = max((len(ids) for ids in rows), default=1) or 1
        ids = torch.full((len(rows), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, tokens in enumerate(rows):
            if tokens:
                ids[row, -len(tokens) :] = torch.tensor(tokens)
                mask[row, -len(tokens) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _prompt_tokens(self, tasks: Sequence[CodeTask]) -> list[list[int]]:
        if not tasks:
            return []
        encoded: list[list[int]] = self.tokenizer([task.prompt for task in tasks], add_special_tokens=True)["input_ids"]
        for task, row in zip(tasks, encoded, strict=True):
            if not row:
                raise ValueError(f"task {task.task_id}: the prompt is empty; give it at least one token")
        return encoded

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a response: the tokenizer's and those of the model's own generation settings."""
        configured = getattr(getattr(self.language_model, "generation_config", None), "eos_token_id", None)
        extra = configured if isinstance(configured, list) else [configured] if configured is not None else []
        return sorted({int(self.tokenizer.eos_token_id), *map(int, extra)})

    def respond(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        keys: Sequence[Sequence[object]],
        temperature: float,
        top_p: float,
        tasks: Sequence[CodeTask],
        constrain: Constraint,
    ) -> Responses:
        """Sample one response a row; row b's randomness is a pure function of ``keys[b]``.

        A collective: ranks without a row call as well.

        Raises:
            ValueError: If a task's program cannot be kept in its grammar, and that is asked for.
            FloatingPointError: If the model's logits are not finite.
            ProcessFailed: If either is so on another rank.
        """
        processor = None
        if constrain == "syntax":
            processor = together(self._syntax_processor, tasks, prompt_ids.shape[1], temperature)
        responses = together(
            self.generate_responses,
            prompt_ids,
            prompt_mask,
            sample_uniforms(keys, self.generation.max_new_tokens),
            eos_ids=self.eos_ids,
            pad_id=self._pad_id,
            temperature=temperature,
            top_p=top_p,
            processor=processor,
        )
        if processor is None:
            return responses
        return responses._replace(support=processor.support(*responses.ids.shape).to(self.device))

    def _syntax_processor(
        self, tasks: Sequence[CodeTask], width: int, temperature: float
    ) -> SyntaxLogitsProcessor | None:
        return syntax_processor(self.tokenizer, tasks, width, self.eos_ids, temperature) if tasks else None

    def generate_responses(self, *args: Any, **kwargs: Any) -> Responses:
        """:func:`generate` with the language model; overridden where the weights lie sharded."""
        return generate(self.language_model, *args, **kwargs)

    def decode(self, responses: Responses) -> list[str]:
        """Texts without special tokens, untouched otherwise."""
        return [
            str(self.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for ids, mask in zip(responses.ids.cpu(), responses.mask.cpu(), strict=True)
        ]

    def complete(self, tasks: Sequence[CodeTask], temperature: float, top_p: float = 1.0, key: str = "") -> Completions:
        """Answer tasks; the same ``key``, seed and weights give the same answers. A collective, as :meth:`respond`."""
        prompt_ids, prompt_mask = self.encode_prompts(tasks)
        keys = [(self.seed, "evaluation", key, task.task_id) for task in tasks]
        constrain = self.generation.eval_constrain
        return self.as_completions(self.respond(prompt_ids, prompt_mask, keys, temperature, top_p, tasks, constrain))

    def as_completions(self, responses: Responses) -> Completions:
        """Responses as evaluation reads them."""
        return Completions(self.decode(responses), responses.mask.sum(-1).tolist(), (~responses.finished).tolist())

    def refuse_wrong_training(self, option: str, schedule: str) -> None:
        """Refuse settings of the trainer that would train wrongly without a word.

        Args:
            option: Name of the option that ``schedule`` is the value of.
            schedule: Of the learning rate.

        Raises:
            ValueError: Under loss scaling, since gradients are clipped before Lightning would unscale them; with
                weights in half precision, to which Lightning would cast all that trains; or if the schedule needs
                ``trainer.max_steps`` and that is not set.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError("trainer.precision 16-mixed is not supported: use bf16-mixed or 32-true")
        precision = self.trainer.precision
        if precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"training under trainer.precision {precision} loses small updates: use bf16-mixed (and, to load the "
                "frozen weights of a LoRA run in half precision, actor.dtype bfloat16)"
            )
        if schedule != "constant" and self.trainer.max_steps <= 0:
            raise ValueError(f"{option} {schedule} needs trainer.max_steps, which is not set")

    # --- figures -----------------------------------------------------------------------------------------------------

    def log_step(self, figures: Mapping[str, float], prog_bar: Collection[str] = ()) -> None:
        """Log what the step just done has shown, at its number: 1 for the first, as checkpoints count.

        Callbacks may call it, in ``on_train_batch_end`` for instance. ``self.log`` would keep what earlier steps logged
        and repeat it where this step has no such figure, and count from 0. ``trainer.callback_metrics``, which monitors
        read, keep the last known value.

        Args:
            figures: The same on every rank.
            prog_bar: Names that progress bars show, too.
        """
        tensors = {name: torch.tensor(value, device=self.device) for name, value in figures.items()}
        self.trainer.callback_metrics.update(tensors)
        self.trainer.progress_bar_metrics.update({name: figures[name] for name in prog_bar})
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.global_step % every == 0:
            self._to_loggers(figures)

    def _to_loggers(self, figures: Mapping[str, float]) -> None:
        self.trainer.logged_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        for logger in self.trainer.loggers:
            logger.log_metrics({**figures, "epoch": self.current_epoch}, self.global_step)
            logger.save()

    # --- validation, test, prediction --------------------------------------------------------------------------------

    @property
    def evaluator(self) -> Evaluator:
        """Scores completions by the tasks' own success metric; its sandbox starts on first use."""
        if self._evaluator is None:
            shared = next((c.sandbox for c in self.trainer.callbacks if hasattr(c, "sandbox")), None)  # type: ignore[attr-defined]
            self._evaluator = Evaluator(shared)
        return self._evaluator

    def teardown(self, stage: str) -> None:
        """Stop the evaluation sandbox."""
        if self._evaluator is not None:
            self._evaluator.close()
            self._evaluator = None

    def evaluate_batch(self, tasks: Sequence[CodeTask], table: SampleTable, temperature: float, key: str = "") -> None:
        """Answer ``tasks`` and add one record a sample to ``table``; a collective."""
        table.update(self.judge(tasks, self.complete(tasks, temperature, self.generation.eval_top_p, key)))

    def judge(self, tasks: Sequence[CodeTask], answers: Completions) -> list[SampleRecord]:
        """Score answers by their tasks' own success metric; where that fails on one rank, all stop."""
        return together(self.evaluator.evaluate, list(tasks), *answers)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.table.reset()

    def validation_step(self, batch: list[CodeTask], batch_idx: int) -> None:
        """Answer a batch of validation tasks."""
        self.evaluate_batch(batch, self.table, self.generation.eval_temperature)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/<metric>`` over all tasks and ``val/<metric>/<task type>``."""
        results = self.table.compute()
        groups = (("", results["overall"]), *((f"/{k}", v) for k, v in results["tasks"].items()))
        figures = {f"val/{name}{suffix}": group[name]["value"] for suffix, group in groups for name in FIGURES}
        figures = {name: value for name, value in figures.items() if value is not None}
        fitting = self.trainer.state.fn == "fit"
        self.log_dict(figures, logger=not fitting, rank_zero_only=True)
        if fitting and not self.trainer.sanity_checking:
            self._to_loggers(figures)  # self.log would put them one step too early

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        self.table.reset()

    def test_step(self, batch: list[CodeTask], batch_idx: int) -> None:
        """Answer a batch of test tasks."""
        self.evaluate_batch(batch, self.table, self.generation.eval_temperature)

    def on_test_epoch_end(self) -> None:
        """Print the table per task type and write it as JSON."""
        from rich.console import Console

        results = self.table.compute()
        path = Path(self.results or self._log_folder() / "test.json")
        if not self.trainer.is_global_zero:
            return
        Console(width=max(110, Console().width)).print(format_table(results))
        write_json(path, results)
        print(f"test results: {path}")

    def predict_step(self, batch: list[CodeTask], batch_idx: int) -> list[dict[str, str]]:
        """Completions of a batch as rows ``task_id``, ``completion``, the format EvalPlus reads."""
        answers = self.complete(batch, self.generation.eval_temperature, self.generation.eval_top_p, "predict")
        return [{"task_id": task.task_id, "completion": text} for task, text in zip(batch, answers.texts, strict=True)]

    def on_predict_start(self) -> None:
        """Refuse to answer what would not be written.

        Raises:
            ValueError: Under ``return_predictions=False``.
        """
        if not self.trainer.predict_loop.return_predictions:
            raise ValueError("return_predictions false leaves nothing to write to completions.jsonl: leave it out")

    def on_predict_epoch_end(self) -> None:
        """Write all completions to ``completions.jsonl`` in the log folder, in the order of the data."""
        loop = self.trainer.predict_loop
        loaders = [loop.predictions] if loop.num_dataloaders == 1 else loop.predictions
        rows: list[dict[str, str]] = []
        for batches in loaders:
            rows += global_order(all_gather([row for batch in batches for row in batch]))
        path = self._log_folder() / "completions.jsonl"
        if self.trainer.is_global_zero:
            write_completions_jsonl(path, rows)
            print(f"{len(rows)} completions: {path}")

    def _log_folder(self) -> Path:
        """Where results go; all ranks must ask, since Lightning broadcasts ``log_dir``."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    # --- export ------------------------------------------------------------------------------------------------------

    def export(self, path: str | Path, merge: bool = True) -> Path:
        """Write the trained actor and tokenizer with ``save_pretrained``; in a run of several processes all must call.

        Args:
            path: Folder to write.
            merge: With LoRA: fold the adapter into the base weights, so that plain transformers loads the result;
                False writes the adapter alone, for peft. Without LoRA it changes nothing.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self._export_model(folder, merge)
        if rank() == 0:
            save_tokenizer(self.tokenizer, self._own_pad_token, folder)
        all_gather(None)  # the folder is complete when any rank returns
        return folder

    def _export_model(self, folder: Path, merge: bool) -> None:
        raise NotImplementedError
