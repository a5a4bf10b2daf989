"""The callback that turns scores, weights and evidence into token rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from lightning_dterm.attribution.distribute import Attribution, CharSpan, Mode, check_potential_scale, code_token_mask
from lightning_dterm.attribution.offsets import TokenOffsets
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.distributed import together

if TYPE_CHECKING:
    import lightning as L

    from lightning_dterm.types import Rollout


class TokenAttribution(RolloutCallback):
    """Fills ``rollout.token_rewards`` from ``scores``, ``alpha``, ``evidence`` and the samples' code spans.

    It keeps nothing from one rollout to the next but tables of the tokenizer, so it has no state to checkpoint. Where a
    trainer has several, only the last one acts: overlays (``configs/attribution``) add theirs to the list.

    Args:
        mode: ``dense``: losses are charged where the evidence points, all else is spread over the code tokens;
            ``uniform``: everything over the code tokens; ``terminal``: everything at the last response token;
            ``potential``: terminal, with potential-based shaping from the evidence, which changes no completion's
            return (discounted by the module's ``ppo.gamma``) and so leaves the optimal policy as it is.
        length_normalize: Scale each sample by mean code tokens / own code tokens (clamped to [0.25, 4]), the mean
            taken over all processes; see :class:`lightning_dterm.attribution.Attribution`. It changes the returns, and
            with them the optimal policy.
        potential_scale: How deep the potential is, in units of each component's weight; default 1. Only for
            ``potential``.

    Raises:
        ValueError: Unknown mode, ``potential_scale`` not positive, or given with another mode.
    """

    def __init__(
        self, mode: Mode = "dense", length_normalize: bool = False, potential_scale: float | None = None
    ) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"unknown attribution mode {mode!r}: choose one of {', '.join(get_args(Mode))}")
        if potential_scale is not None:
            if mode != "potential":
                raise ValueError(f"potential_scale is for mode potential only: leave it out with mode {mode}")
            check_potential_scale(potential_scale)
        self.mode: Mode = mode
        self.length_normalize = length_normalize
        self.potential_scale = 1.0 if potential_scale is None else potential_scale
        self._offsets: TokenOffsets | None = None

    def on_rewards_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Attribute; logs ``attribution/code_token_share`` and ``attribution/span_share`` (samples with evidence).

        Raises:
            ValueError: Scores or weights are missing, or the tokens do not decode to ``rollout.texts``.
            ProcessFailed: That is so on another rank.
        """
        if self is not attribution_of(trainer):
            return
        token_spans = together(self._checked_spans, pl_module, rollout)  # what follows may be a collective
        rollout.token_rewards = self.attribution(trainer, pl_module, rollout, token_spans).total()
        code = code_token_mask(token_spans, [sample.code_spans for sample in rollout.samples], rollout.response_mask)
        # Where the leave-one-out baseline goes: that of the shaped modes belongs to the terminal reward alone.
        at_end = self.mode in ("terminal", "potential")
        rollout.reward_places = last_token_mask(rollout.response_mask) if at_end else code
        tokens = int(rollout.response_mask.sum())
        with_evidence = sum(any(spans for spans in row.values()) for row in rollout.evidence)
        rollout.metrics["attribution/code_token_share"] = float(code.sum()) / max(tokens, 1)
        rollout.metrics["attribution/span_share"] = with_evidence / max(len(rollout), 1)

    def _checked_spans(self, pl_module: L.LightningModule, rollout: Rollout) -> list[list[CharSpan]]:
        if rollout.weighed is None or rollout.alpha is None:
            raise ValueError("TokenAttribution needs scores and alpha: put RewardComputation before it in callbacks")
        if len(rollout.samples) != len(rollout):
            raise ValueError(f"rollout.samples has {len(rollout.samples)} samples for {len(rollout)} responses")
        return self.token_spans(pl_module, rollout)

    def attribution(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        rollout: Rollout,
        token_spans: Sequence[Sequence[CharSpan]],
    ) -> Attribution:
        """What is placed where, for token spans from :meth:`token_spans`; under ``length_normalize`` a collective."""
        assert rollout.weighed is not None
        assert rollout.alpha is not None
        code_spans = [sample.code_spans for sample in rollout.samples]
        reference = None
        if self.length_normalize:
            reference = self._mean_code_tokens(trainer, code_token_mask(token_spans, code_spans, rollout.response_mask))
        return Attribution(
            rollout.weighed,
            rollout.alpha,
            rollout.evidence or [{} for _ in rollout.samples],
            rollout.component_names,
            token_spans,
            code_spans,
            rollout.response_mask,
            self.mode,
            self.length_normalize,
            reference,
            gamma=float(getattr(getattr(pl_module, "ppo", None), "gamma", 1.0)),
            potential_scale=self.potential_scale,
            ceilings=rollout.ceilings,
        )

    def token_spans(self, pl_module: L.LightningModule, rollout: Rollout) -> list[list[CharSpan]]:
        """Per sample the character span of each of the T columns, (0, 0) outside the response mask."""
        tokenizer = pl_module.tokenizer
        if self._offsets is None or self._offsets.tokenizer is not tokenizer:
            self._offsets = TokenOffsets(tokenizer)
        rows: list[list[CharSpan]] = []
        ids_of = rollout.response_ids.tolist()
        mask_of = rollout.response_mask.bool().tolist()
        for index, (ids, mask) in enumerate(zip(ids_of, mask_of, strict=True)):
            columns = [column for column, inside in enumerate(mask) if inside]
            text, spans = self._offsets.char_spans([ids[column] for column in columns])
            if text != rollout.texts[index]:
                raise ValueError(_mismatch(index, text, rollout.texts[index]))
            row: list[CharSpan] = [(0, 0)] * len(ids)
            for column, span in zip(columns, spans, strict=True):
                row[column] = span
            rows.append(row)
        return rows

    def _mean_code_tokens(self, trainer: L.Trainer, code: Tensor) -> float:
        """Mean code tokens per sample with any, over all processes: the result must not depend on their number."""
        counts = code.sum(-1)
        local = torch.stack([counts.sum(), (counts > 0).sum()]).double()
        total = trainer.strategy.reduce(local, reduce_op="sum") if trainer.world_size > 1 else local
        assert isinstance(total, Tensor)
        return float(total[0] / total[1]) if total[1] > 0 else 1.0


def attribution_of(trainer: L.Trainer) -> TokenAttribution | None:
    """The trainer's last :class:`TokenAttribution`: an overlay's, appended to the list, replaces those before it."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, TokenAttribution)]  # type: ignore[attr-defined]
    return found[-1] if found else None


def last_token_mask(response_mask: Tensor) -> Tensor:
    """``[B, T]`` bool: the last token of each response."""
    inside = response_mask.bool()
    return inside & (inside.long().flip(-1).cumsum(-1).flip(-1) == 1)


def _mismatch(index: int, decoded: str, text: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(decoded, text, strict=False)) if a != b), min(len(decoded), len(text)))
    return (
        f"sample {index}: the response's tokens decode to other text than rollout.texts from character {at} on "
        f"({decoded[at : at + 20]!r} against {text[at : at + 20]!r}), so rewards would land on wrong tokens; fill "
        "rollout.texts with tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)"
    )
