"""Reward computation as a Lightning callback: fills samples, scores, evidence and outcome of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch

from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.distributed import all_gather, rank, together
from lightning_dterm.rewards import (
    CompileReward,
    EfficiencyReward,
    FunctionReward,
    Pending,
    Progress,
    RewardComponent,
    RewardSuite,
    SimilarityReward,
    StyleReward,
    SuiteResult,
    TestsReward,
)
from lightning_dterm.sandbox import Limits, Sandbox
from lightning_dterm.types import Rollout, Sample

Extractor = Callable[[str, str], Sequence[tuple[int, int]]]


def default_components() -> list[RewardComponent]:
    """The five sub-rewards of DTERM: compile, tests, similarity, style, efficiency."""
    return [CompileReward(), TestsReward(), SimilarityReward(), StyleReward(), EfficiencyReward()]


class RewardComputation(RolloutCallback):
    """Scores every completion of a rollout with every component: begun on ``on_generation_end``, so that programs run
    beside the models' forward passes, and collected on ``on_rollout_end``.

    Each process scores its own samples, in its own sandbox, and judges their failures by itself; where one must stop,
    all do. Counts of samples and failures are part of the checkpoint, per rank. Where the command line
    (``DTermTrainer``) is given several, only the last one acts and the others are never set up: overlays
    (``configs/rewards``) add theirs to the list.

    Args:
        components: Reward components in column order, or import paths of TRL-style functions
            (:class:`lightning_dterm.rewards.FunctionReward`); default: the five of DTERM.
        sandbox_slots: Programs run at a time; default: this process's share of the cores.
        limits: Limits of each program.
        allow_missing: Isolation fences that may be missing, see :class:`lightning_dterm.sandbox.Sandbox`.
        min_level: Least isolation of programs to accept (``none``, ``process``, ``syscalls``, ``kernel``,
            ``namespaces``); below it the run is refused.
        overlap: Run programs while the models score the rollout; False runs them afterwards. Scores are the same.
        max_failures: Share of failed scores of one component, over a process's last ``window``, that stops the run.
        window: Scores remembered per component and process; the share is judged once half of them are in.
        timeout_s: Seconds that a component may take for one batch, where it does not say itself.
        extractor: ``(text, language) -> ((start, end), ...)``, which parts of a completion are code; default:
            :func:`lightning_dterm.attribution.extract.extract_code`.
    """

    def __init__(
        self,
        components: list[RewardComponent | str] | None = None,
        sandbox_slots: int | None = None,
        limits: Limits | None = None,
        allow_missing: Sequence[str] = (),
        max_failures: float = 0.25,
        window: int = 512,
        extractor: Extractor | None = None,
        min_level: str = "kernel",
        overlap: bool = True,
        timeout_s: float = 600.0,
    ) -> None:
        self._sandbox = Sandbox(sandbox_slots, limits, allow_missing, min_level=min_level)
        self._slots = sandbox_slots
        self._extractor = extractor
        named = default_components() if components is None else components
        chosen = [FunctionReward(one) if isinstance(one, str) else one for one in named]
        self.suite = RewardSuite(chosen, self._sandbox, max_failures, window, timeout_s)
        self.columns: dict[str, list[Any]] = {}
        self.overlap = overlap
        self._begun: tuple[Rollout, list[Sample], Pending] | None = None

    @property
    def sandbox(self) -> Sandbox:
        """Where programs run; evaluation shares it, and so its ``allow_missing`` and its slots."""
        return self._sandbox

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the components, in the order of the score columns."""
        return self.suite.names

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set up components and start the sandbox's workers, so that missing isolation is reported before training."""
        if self._extractor is None:
            from lightning_dterm.attribution.extract import extract_code

            self._extractor = extract_code
        if self._slots is None:
            self._sandbox.share(trainer.num_devices)
        self.suite.setup()
        self._sandbox.run("", None)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close components and end the sandbox's workers."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun[2].abandon()  # or it would start workers anew
        self.suite.close()
        self._sandbox.close()

    def on_generation_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Begin: nothing that is begun here draws a random number or depends on when it ends."""
        if self.overlap:
            samples = self.make_samples(rollout)
            self._begun = rollout, samples, self.suite.start(samples, progress_of(trainer, pl_module))

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Fill ``samples``, ``component_names``, ``scores``, ``evidence``, ``outcome`` and metrics of the rollout.

        Raises:
            RewardFailure: A reward fails too often.
            ProcessFailed: One does on another rank: all ranks stop together.
        """
        result = together(self._result, trainer, pl_module, rollout)
        counts = all_gather([result.failures[name] for name in result.names])
        failures = [sum(of_ranks) for of_ranks in zip(*counts, strict=True)]
        device = rollout.response_ids.device
        rollout.component_names = result.names
        rollout.scores, rollout.outcome = result.scores.to(device), result.outcome.to(device)
        rollout.evidence = result.evidence
        self.columns = result.columns
        rollout.metrics.update(reward_metrics(result, failures))

    def _result(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> SuiteResult:
        """What this rank's samples earned: collected where it was begun, else computed now."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is rollout:
            rollout.samples = begun[1]
            return begun[2].result()
        rollout.samples = self.make_samples(rollout)
        return self.suite.score(rollout.samples, progress_of(trainer, pl_module))

    def make_samples(self, rollout: Rollout) -> list[Sample]:
        """One sample per completion, with its code located.

        Raises:
            RuntimeError: Before :meth:`setup`.
            ValueError: If the rollout's tasks, texts and ``finished`` differ in number.
        """
        if self._extractor is None:
            raise RuntimeError("RewardComputation.setup was not called: there is no extractor yet.")
        finished = rollout.finished.tolist()
        masks = rollout.response_mask.bool().cpu()
        ids = [tuple(row[mask].tolist()) for row, mask in zip(rollout.response_ids.cpu(), masks, strict=True)]
        samples = []
        for task, text, ended, tokens in zip(rollout.tasks, rollout.texts, finished, ids, strict=True):
            spans = tuple((int(start), int(end)) for start, end in self._extractor(text, task.language))
            samples.append(Sample(task, text, spans, truncated=not ended, token_ids=tokens))
        return samples

    def score_aside(self, rollout: Rollout) -> None:
        """Score completions that are no part of training, and leave no trace in the components' counts and states.

        Fills what :meth:`on_rollout_end` fills, but for metrics. No collective.
        """
        before = self.suite.state_dict()
        rollout.samples = self.make_samples(rollout)
        try:
            result = self.suite.score(rollout.samples)
        finally:
            self.suite.load_state_dict(before)
        device = rollout.response_ids.device
        rollout.component_names, rollout.evidence = result.names, result.evidence
        rollout.scores, rollout.outcome = result.scores.to(device), result.outcome.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Counts of every rank: Lightning writes rank 0's state only, so ranks are gathered here (a collective)."""
        return {"ranks": all_gather(self.suite.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore this rank's state; a rank that the checkpoint did not have starts afresh."""
        ranks = state_dict["ranks"]
        if rank() < len(ranks):
            self.suite.load_state_dict(ranks[rank()])


def progress_of(trainer: L.Trainer | None, module: L.LightningModule | None) -> Progress:
    """How far a run is; at its start where there is none."""
    if trainer is None or module is None:
        return Progress()
    return Progress(module.global_step, trainer.max_steps, trainer.current_epoch)


def reward_metrics(result: SuiteResult, failures: Sequence[int]) -> dict[str, float]:
    """Scalars of one batch: mean over applicable samples, share applicable, failures and seconds per component.

    ``time/reward_busy`` is how long programs and components that may overlap took, ``time/reward_waited`` how much of
    it the trainer stood still; their difference ran beside the forward passes.

    Args:
        result: This rank's.
        failures: Per component, of all ranks: a count must not depend on how the samples lie over them.
    """
    metrics: dict[str, float] = {
        "time/reward_execution": result.seconds["execution"],
        "time/reward_busy": result.busy,
        "time/reward_waited": result.waited,
    }
    applicable = ~torch.isnan(result.scores)
    for column, name in enumerate(result.names):
        if applicable[:, column].any():
            metrics[f"reward/{name}"] = result.scores[applicable[:, column], column].mean().item()
        metrics[f"reward_applicable/{name}"] = applicable[:, column].float().mean().item()
        metrics[f"reward_failures/{name}"] = float(failures[column])
        metrics[f"time/reward_{name}"] = result.seconds[name]
    metrics.update({f"reward_log/{name}": value for name, value in result.metrics.items()})
    known = ~torch.isnan(result.outcome)
    if known.any():
        metrics["reward/outcome"] = result.outcome[known].mean().item()
    return metrics
