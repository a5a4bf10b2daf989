"""Preference: what a reward model thinks of a completion (DTERM eq. 12)."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from lightning_dterm.reward_model import Calibration, calibration_of, encode, load_reward_model, logits_of
from lightning_dterm.rewards.base import RewardComponent, is_empty
from lightning_dterm.types import CodeTask, RewardResult, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lightning_dterm.sandbox import Sandbox


class PreferenceReward(RewardComponent):
    """``sigmoid((r(prompt, completion) - center) / scale)`` of a reward model's logit r: R_pref of eq. 12.

    It enters ``R = sum_i alpha_i R_i`` as any other component; where it does not apply its weight is 0 and the others
    share it. Trained by :class:`~lightning_dterm.modules.preference.PreferenceModule` (``configs/preference.yaml``), or
    any sequence classifier of transformers with one label. Its evidence is the whole completion.

    Args:
        path: Folder or hub id of the reward model.
        task_types: Types of task it was trained for; masked elsewhere. None: all.
        batch_size: Completions a forward pass.
        max_length: Tokens of prompt and completion together; longer ones lose their beginning.
        dtype: Precision of its weights.
        device: Where it runs; None: this process's GPU if there is one, else the CPU.
        center: Logit of value 0.5; None: what training wrote into the model's config.json, else 0.
        scale: Logits per unit of the logistic function's argument; None: likewise, else 1.
        name: Column name.

    Raises:
        ValueError: If a size or ``scale`` is not positive.
    """

    def __init__(
        self,
        path: str,
        task_types: Collection[str] | None = None,
        batch_size: int = 16,
        max_length: int = 1024,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | None = None,
        center: float | None = None,
        scale: float | None = None,
        name: str = "preference",
    ) -> None:
        if batch_size < 1 or max_length < 2:
            raise ValueError(f"PreferenceReward: batch_size and max_length: got {batch_size}, {max_length}")
        if scale is not None and not scale > 0:
            raise ValueError(f"PreferenceReward: scale must be positive, got {scale}")
        self.path, self.task_types = path, None if task_types is None else frozenset(task_types)
        self.batch_size, self.max_length, self.dtype, self.device = batch_size, max_length, dtype, device
        self.center, self.scale, self.name = center, scale, name
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._calibration = Calibration()

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Load the reward model.

        Raises:
            ActorLoadError: If it cannot be loaded.
        """
        if self._model is not None:
            return
        with torch.random.fork_rng():
            model, self._tokenizer = load_reward_model(self.path, getattr(torch, self.dtype))
        self._model = model.to(self._device()).eval().requires_grad_(False)  # type: ignore[arg-type]
        trained = calibration_of(model)
        self._calibration = Calibration(
            trained.center if self.center is None else self.center, trained.scale if self.scale is None else self.scale
        )

    def _device(self) -> torch.device:
        if self.device is not None or not torch.cuda.is_available():
            return torch.device(self.device or "cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks of the types it was trained for."""
        return self.task_types is None or task.task_type in self.task_types

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """The calibrated logit of each completion; an empty one gets 0, one whose logit is not finite has failed."""
        results = [RewardResult(0.0)] * len(samples)
        rows = [index for index, sample in enumerate(samples) if not is_empty(sample)]
        rows.sort(key=lambda index: len(samples[index].task.prompt) + len(samples[index].text))  # less padding
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            for index, value in zip(part, self._values([samples[i] for i in part]), strict=True):
                results[index] = (
                    RewardResult(value)
                    if math.isfinite(value)
                    else RewardResult(None, error=f"reward model {self.path}: the logit is not finite")
                )
        return results

    @torch.inference_mode()
    def _values(self, samples: Sequence[Sample]) -> list[float]:
        assert self._model is not None, "setup has not run"
        assert self._tokenizer is not None
        prompts, texts = [sample.task.prompt for sample in samples], [sample.text for sample in samples]
        encoded = encode(self._tokenizer, prompts, texts, self.max_length)
        with torch.autocast(self._model.device.type, enabled=False):  # the same whatever precision the policy trains in
            values: list[float] = self._calibration(logits_of(self._model, encoded)).tolist()
        return values

    def close(self) -> None:
        """Let the model go."""
        self._model = self._tokenizer = None
