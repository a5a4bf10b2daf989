"""The contracts every part shares: tasks, samples, reward results and rollouts.

Notation: ``B`` samples in a rollout, ``P`` padded prompt length, ``T`` padded response length, ``K`` samples per
prompt, ``n`` reward components, ``d`` task-embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_dterm.sandbox.result import Result

TaskType = Literal["summarization", "translation", "completion", "repair", "synthesis", "optimization", "robotics"]
SuccessMetric = Literal["tests", "exact_match"]


@dataclass(frozen=True, slots=True)
class CallTest:
    """One call of a task's entry point and the value it must return.

    ``args`` and ``expected`` are plain data (None, bool, int, float, str, bytes, list, tuple, dict, set). A *visible*
    test feeds the reward; the others are read only by the success metric, which no reward may see.
    """

    args: tuple[Any, ...]
    expected: Any
    visible: bool = True


@dataclass(frozen=True, slots=True)
class CodeTask:
    """One problem of any benchmark: the single schema that every DataModule produces and every reward reads.

    Attributes:
        task_id: Unique within its benchmark.
        task_type: One of :data:`TaskType`; rewards, weights and tables are grouped by it.
        language: Language of the completion (``python``, ``csharp``, ...; ``text`` for prose such as summaries).
        prompt: The exact text given to the actor.
        description: What the task encoder reads to decide how much each reward counts.
        reference: A correct completion (what the actor should emit; for completion tasks without ``prefix``).
        source_language: Language of the input program for translation and summarization.
        tests: Calls with expected values; empty where the benchmark has none.
        entry_point: Name of the function the tests call.
        prefix: Code that stands before the completion and belongs to the program (completion tasks).
        buggy_code: The faulty program of a repair task.
        image: An image that accompanies the description: its path, or the bytes of the file.
        success_metric: ``tests`` (every test passes, visible and hidden) or ``exact_match``
            (:func:`lightning_dterm.metrics.exact_match` of ``reference`` or any of ``metadata["accepted"]``).
        metadata: Anything else, plain data only.
    """

    task_id: str
    task_type: str
    language: str
    prompt: str
    description: str
    reference: str
    source_language: str | None = None
    tests: tuple[CallTest, ...] = ()
    entry_point: str | None = None
    prefix: str = ""
    buggy_code: str | None = None
    image: str | bytes | None = None
    success_metric: SuccessMetric = "tests"
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open character range ``[start, end)`` with a non-negative ``weight``: where a score was earned or lost."""

    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What one component says of one sample. Three outcomes are kept apart:

    * a value in [0, 1];
    * *not applicable*: ``value`` and ``error`` are None, the component is masked for this sample;
    * *failed*: ``error`` names what broke in the reward itself; masked too, counted and logged, never a silent 0.

    ``spans`` are offsets into :attr:`Sample.program`; empty means no place is to blame (uniform over code tokens).
    """

    value: float | None
    spans: tuple[Span, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(slots=True)
class Sample:
    """One completion as rewards see it.

    Attributes:
        task: The task it answers.
        text: The decoded completion without special tokens.
        code_spans: Character ranges of ``text`` that are code, ascending and disjoint (all of it for bare code).
        truncated: True where generation stopped at the length limit, without an end-of-sequence token.
        execution: The sandbox's result for ``program`` on the task's tests, where a component asked for one.
        token_ids: The completion's tokens as generated, the end-of-sequence token included; empty where not known.
    """

    task: CodeTask
    text: str
    code_spans: tuple[tuple[int, int], ...]
    truncated: bool = False
    execution: Result | None = None
    token_ids: tuple[int, ...] = ()

    @property
    def code(self) -> str:
        """The code of the completion, its spans joined."""
        return "".join(self.text[start:end] for start, end in self.code_spans)

    @property
    def program(self) -> str:
        """What is compiled and run: the task's prefix and the completion's code."""
        return self.task.prefix + self.code

    def spans_in_text(self, spans: Sequence[Span]) -> list[Span]:
        """Map spans from ``program`` offsets to ``text`` offsets; parts outside the completion's code are dropped."""
        mapped: list[Span] = []
        for span in spans:
            position = len(self.task.prefix)
            for start, end in self.code_spans:
                low = max(span.start, position)
                high = min(span.end, position + end - start)
                if low < high:
                    mapped.append(Span(start + low - position, start + high - position, span.weight))
                position += end - start
        return mapped


@dataclass(slots=True)
class Rollout:
    """One batch of completions on its way from the actor to the update, filled in from top to bottom.

    Attributes:
        tasks: The B tasks, the K samples of one prompt adjacent.
        group: ``[B]`` int64, index of the prompt within the rollout.
        prompt_ids / prompt_mask: ``[B, P]``, left-padded.
        response_ids / response_mask: ``[B, T]``, right-padded; the mask covers the end-of-sequence token.
        finished: ``[B]`` bool, the response ended by itself.
        texts: Decoded completions without special tokens.
        support: ``[B, T, W]`` tokens that constrained sampling could choose from, -1 fills up; None: any token. Then
            log-probabilities, entropy and KL are those of actor and reference with all other tokens left out.
        samples: What rewards see (filled by ``RewardComputation``).
        logprobs / ref_logprobs / values: ``[B, T]`` float, zero outside the mask.
        gradients: ``[B, D]`` gradient of each response's log-probability in the last layer, compressed
            (:class:`lightning_dterm.dterm.sketch.GradientSketch`); None where the weighting asks for none.
        component_names: The n components, in column order.
        scores: ``[B, n]`` raw component values in [0, 1]; NaN where not applicable or failed.
        evidence: B mappings from component name to spans in ``texts`` offsets; no entry or empty = uniform.
        outcome: ``[B]`` the task's own success metric in [0, 1] on tests that no reward reads; NaN where unknown.
        task_features: ``[B, w]`` what the task encoder keeps of each task: its embedding, unless the encoder trains.
        embeddings: ``[B, d]`` task embeddings.
        alpha: ``[B, n]`` weights; rows sum to 1 over applicable components and are 0 elsewhere.
        rewards: ``[B, n]`` scores after the weighting's FiLM and normalisation, NaN as in ``scores``; what is weighted.
        ceilings: ``[B, n]`` the reward that a score of 1 would be.
        token_rewards: ``[B, T]`` attributed weighted scores, without KL; exactly 0 outside the mask.
        reward_places: ``[B, T]`` bool, tokens that attribution may reward (the code, or the last token).
        advantages / returns: ``[B, T]``.
        metrics: Scalars to log.
    """

    tasks: list[CodeTask]
    group: Tensor
    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    finished: Tensor
    texts: list[str]
    support: Tensor | None = None
    samples: list[Sample] = field(default_factory=list)
    logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    gradients: Tensor | None = None
    component_names: tuple[str, ...] = ()
    scores: Tensor | None = None
    evidence: list[dict[str, list[Span]]] = field(default_factory=list)
    outcome: Tensor | None = None
    task_features: Tensor | None = None
    embeddings: Tensor | None = None
    alpha: Tensor | None = None
    rewards: Tensor | None = None
    ceilings: Tensor | None = None
    token_rewards: Tensor | None = None
    reward_places: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def weighed(self) -> Tensor | None:
        """``[B, n]`` what ``alpha`` multiplies: ``rewards``, or the scores where no weighting has read them."""
        return self.scores if self.rewards is None else self.rewards
