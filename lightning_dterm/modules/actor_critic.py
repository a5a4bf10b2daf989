"""Actor, reference and critic behind one ``forward``, with full fine-tuning or LoRA on a single shared base."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_dterm.dterm.sketch import GradientSketch, SketchTally
from lightning_dterm.modules.agreement import choose_route, states_width
from lightning_dterm.modules.config import check_at_least, check_positive
from lightning_dterm.modules.forward import JoinedBatch, join, scatter
from lightning_dterm.modules.loading import ActorConfig, fingerprint, load_causal_lm, not_recomputing, recompute
from lightning_dterm.modules.sharding import as_forward, unsharded
from lightning_dterm.rl.generation import Responses, generate
from lightning_dterm.rl.logprobs import Head, token_logprobs

CriticKind = Literal["separate", "shared", "adapter"]


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on the actor.

    Attributes:
        rank: Width of the adapters.
        alpha: Scale; the update is multiplied by ``alpha / rank``.
        target_modules: Module names to adapt, or ``all-linear``.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        check_at_least(1, {"lora.rank": self.rank})
        check_positive({"lora.alpha": self.alpha})


@dataclass
class CriticConfig:
    """Where values come from.

    Attributes:
        kind: ``separate`` - a trunk of its own, started from the actor's weights; ``shared`` - a head on the actor's
            trunk (cheapest); ``adapter`` - a second LoRA adapter on the one base (needs LoRA).
    """

    kind: CriticKind = "separate"


class Scores(NamedTuple):
    """What :meth:`ActorCritic.forward` returns; all float32, None where not asked.

    All but ``gradients`` are ``[B, T]`` and 0 outside the mask.
    """

    logprobs: Tensor | None
    ref_logprobs: Tensor | None
    values: Tensor | None
    entropy: Tensor | None
    gradients: Tensor | None = None  #: ``[B, D]`` sketches of the responses' score functions


class ActorCritic(nn.Module):
    """The trainable actor, its critic and the frozen reference.

    Without LoRA the reference is a frozen copy of the actor; with LoRA one base model serves the actor (adapter on),
    the reference (adapter off) and, where ``critic.kind`` is ``adapter``, the critic (its own adapter).

    Args:
        actor: What to load.
        critic: Where values come from.
        lora: Adapters; None is full fine-tuning.
        with_reference: Keep a reference model (not needed when KL is neither penalised nor reported).
        sharded: The weights are going to be sharded, where not every model can be run.

    Raises:
        ActorLoadError: If the actor cannot be loaded, or generates by another distribution than training scores.
        ValueError: If the critic's kind does not go with the other settings.
    """

    def __init__(
        self,
        actor: ActorConfig,
        critic: CriticConfig,
        lora: LoraSettings | None = None,
        with_reference: bool = True,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        _check(actor, critic, lora)
        base = load_causal_lm(actor)
        self.route = choose_route(base, sharded)
        self.kind = critic.kind
        self.fingerprint = fingerprint(base)
        self.reference: nn.Module | None = None
        self.critic: nn.Module | None = None
        if critic.kind == "separate":
            self.critic = copy.deepcopy(base.base_model).float()  # trained whole: bfloat16 would lose small updates
        if lora is None:
            self.reference = copy.deepcopy(base).requires_grad_(False) if with_reference else None
            self.actor: nn.Module = base
        else:
            self.actor = with_adapters(base, lora, critic.kind)
        self.uses_lora = lora is not None
        self.with_reference = with_reference
        self.value_head = nn.Linear(states_width(base, self.route), 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.gradient_checkpointing = actor.gradient_checkpointing
        self.train()  # Lightning leaves a module in the mode it is built in

    def train(self, mode: bool = True) -> ActorCritic:
        """Stay in evaluation mode: dropout is off in rollouts and updates alike.

        Only what recomputes activations, which transformers ties to training mode, follows ``mode``, and this module
        to say so; dropout probabilities were set to 0 on loading.
        """
        recompute(self, mode and self.gradient_checkpointing)
        return self

    @property
    def language_model(self) -> PreTrainedModel:
        """The actor as a transformers model (with LoRA: the base model with its adapters in place)."""
        model = self.actor.get_base_model() if isinstance(self.actor, PeftModel) else self.actor
        assert isinstance(model, PreTrainedModel)
        return model

    def actor_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the actor."""
        return [p for n, p in self.actor.named_parameters() if p.requires_grad and ".critic." not in n]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the critic and its value head."""
        own = list(self.critic.parameters()) if self.critic is not None else []
        adapter = [p for n, p in self.actor.named_parameters() if p.requires_grad and ".critic." in n]
        return [*own, *adapter, *self.value_head.parameters()]

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        *,
        actor: bool = False,
        reference: bool = False,
        critic: bool = False,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        support: Tensor | None = None,
        sketch: GradientSketch | None = None,
    ) -> Scores:
        """Score given responses.

        Args:
            prompt_ids / prompt_mask: ``[B, P]``, left-padded.
            response_ids / response_mask: ``[B, T]``, right-padded.
            actor / reference / critic: Which of the three to run.
            temperature: The sampling temperature: log-probabilities are those of the distribution sampled from.
            entropy_gradient: Let gradients flow through the entropy.
            support: ``[B, T, W]`` tokens that sampling could choose from (:class:`Responses`), for actor and reference.
            sketch: Compress the actor's score functions with it; not under autograd.
        """
        batch = join(prompt_ids, prompt_mask, response_ids, response_mask)
        logprobs = ref_logprobs = values = entropy = tally = None
        if actor:
            with self._adapter("actor"):
                source, head = self.route.predict(self.language_model, batch)
                tally = None if sketch is None else _tally(sketch, batch, temperature)
                logprobs, entropy = self._logprobs(source, head, batch, temperature, support, entropy_gradient, tally)
            if critic and self.kind == "shared" and self.route.from_states:
                values = self._values(source, batch)
        if critic and values is None:
            values = self._critic_values(batch)
        if reference:
            ref_logprobs = self._reference_logprobs(batch, temperature, support)
        return Scores(logprobs, ref_logprobs, values, entropy, None if tally is None else tally.total)

    def generate(self, *args: Any, **kwargs: Any) -> Responses:
        """Sample from the actor, see :func:`lightning_dterm.rl.generation.generate`; arguments after the model."""
        with not_recomputing(self):  # a model that recomputes drops its key-value cache
            return as_forward(self, self._generate, *args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Responses:
        with unsharded(self, self.actor):
            return generate(self.language_model, *args, decoding=self.route.decoding, **kwargs)

    def _critic_values(self, batch: JoinedBatch) -> Tensor:
        if self.critic is not None:
            return self._values(self.route.states(self.critic, batch), batch)
        with self._adapter("critic" if self.kind == "adapter" else "actor"):
            return self._values(self.route.states(self.language_model.base_model, batch), batch)

    @torch.no_grad()
    def _reference_logprobs(self, batch: JoinedBatch, temperature: float, support: Tensor | None) -> Tensor:
        if self.reference is None and not self.uses_lora:
            raise RuntimeError("this ActorCritic was built without a reference model")
        model = self.language_model if self.reference is None else self.reference
        with self._adapter(None):
            return self._logprobs(*self.route.predict(model, batch), batch, temperature, support)[0]

    def _logprobs(
        self,
        source: Tensor,
        head: Head,
        batch: JoinedBatch,
        temperature: float,
        support: Tensor | None,
        entropy_gradient: bool = False,
        tally: SketchTally | None = None,
    ) -> tuple[Tensor, Tensor]:
        labels = batch.labels
        if support is not None:
            support = support[:, : batch.response_mask.shape[1]][batch.response_mask]
        logprobs, entropy = token_logprobs(
            head, source, labels, temperature, entropy_gradient=entropy_gradient, support=support, visit=tally
        )
        return scatter(logprobs, batch), scatter(entropy, batch)

    def _values(self, hidden: Tensor, batch: JoinedBatch) -> Tensor:
        values = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)
        return scatter(values.float(), batch)

    @contextmanager
    def _adapter(self, name: str | None) -> Iterator[None]:
        """Run with one adapter, or with none; switching in peft also toggles ``requires_grad``, which is put back."""
        if not self.uses_lora or name == "actor":
            yield
            return
        layers = [module for module in self.actor.modules() if isinstance(module, BaseTunerLayer)]
        flags = [(p, p.requires_grad) for p in self.actor.parameters()]
        for layer in layers:
            if name is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter(name)
        _restore(flags)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
                layer.set_adapter("actor")
            _restore(flags)


def _tally(sketch: GradientSketch, batch: JoinedBatch, temperature: float) -> SketchTally:
    rows = batch.response_mask.nonzero()[:, 0]
    return sketch.tally(rows, len(batch.ids), batch.labels, temperature)


def _check(actor: ActorConfig, critic: CriticConfig, lora: LoraSettings | None) -> None:
    if critic.kind == "adapter" and lora is None:
        raise ValueError("critic.kind 'adapter' needs LoRA: set lora, or choose 'separate' or 'shared'")
    if critic.kind == "adapter" and actor.gradient_checkpointing:
        raise ValueError(
            "critic.kind 'adapter' and gradient_checkpointing do not go together (activations would be recomputed "
            "under the other adapter): choose critic.kind 'shared' or 'separate', or no checkpointing"
        )
    if lora is None and actor.dtype != "float32":
        raise ValueError(
            f"full fine-tuning in {actor.dtype} loses small updates: use actor.dtype float32 with "
            "trainer.precision bf16-mixed, or LoRA"
        )


def with_adapters(base: PreTrainedModel, lora: LoraSettings, kind: CriticKind) -> PeftModel:
    """Freeze ``base`` and give it the actor's adapter and, for critic kind ``adapter``, the critic's."""
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config, adapter_name="actor")
    assert isinstance(model, PeftModel)
    if kind == "adapter":
        model.add_adapter("critic", copy.deepcopy(config))
        for name, parameter in base.base_model.named_parameters():  # nothing behind the trunk is run for values
            if ".critic." in name:
                parameter.requires_grad_(True)
    return model


def _restore(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
