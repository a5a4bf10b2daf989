"""The callback that turns scores, weights and evidence into token rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from lightning_dterm.attribution.distribute import Attribution, CharSpan, Mode, code_token_mask
from lightning_dterm.attribution.offsets import TokenOffsets
from lightning_dterm.hooks import RolloutCallback

if TYPE_CHECKING:
    import lightning as L

    from lightning_dterm.types import Rollout


class TokenAttribution(RolloutCallback):
    """Fills ``rollout.token_rewards`` from ``scores``, ``alpha``, ``evidence`` and the samples' code spans.

    It keeps nothing from one rollout to the next but tables of the tokenizer, so it has no state to checkpoint.

    Args:
        mode: ``dense``: losses are charged where the evidence points, all else is spread over the code tokens;
            ``uniform``: everything over the code tokens; ``terminal``: everything at the last response token.
        length_normalize: Scale each sample by mean code tokens / own code tokens (clamped to [0.25, 4]), the mean
            taken over all processes; see :class:`lightning_dterm.attribution.Attribution`.
    """

    def __init__(self, mode: Mode = "dense", length_normalize: bool = False) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"unknown attribution mode {mode!r}: choose one of {', '.join(get_args(Mode))}")
        self.mode: Mode = mode
        self.length_normalize = length_normalize
        self._offsets: TokenOffsets | None = None

    def on_rewards_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Attribute; logs ``attribution/code_token_share`` and ``attribution/span_share`` (samples with evidence).

        Raises:
            ValueError: Scores or weights are missing, or the tokens do not decode to ``rollout.texts``.
        """
        if rollout.scores is None or rollout.alpha is None:
            raise ValueError("TokenAttribution needs scores and alpha: put RewardComputation before it in callbacks")
        if len(rollout.samples) != len(rollout):
            raise ValueError(f"rollout.samples has {len(rollout.samples)} samples for {len(rollout)} responses")
        evidence = rollout.evidence or [{} for _ in rollout.samples]
        token_spans = self._token_spans(pl_module, rollout)
        code_spans = [sample.code_spans for sample in rollout.samples]
        code = code_token_mask(token_spans, code_spans, rollout.response_mask)
        rollout.token_rewards = Attribution(
            rollout.scores,
            rollout.alpha,
            evidence,
            rollout.component_names,
            token_spans,
            code_spans,
            rollout.response_mask,
            self.mode,
            self.length_normalize,
            self._mean_code_tokens(trainer, code) if self.length_normalize else None,
        ).total()
        rollout.reward_places = last_token_mask(rollout.response_mask) if self.mode == "terminal" else code
        tokens = int(rollout.response_mask.sum())
        with_evidence = sum(any(spans for spans in row.values()) for row in evidence)
        rollout.metrics["attribution/code_token_share"] = float(code.sum()) / max(tokens, 1)
        rollout.metrics["attribution/span_share"] = with_evidence / max(len(rollout), 1)

    def _token_spans(self, pl_module: L.LightningModule, rollout: Rollout) -> list[list[CharSpan]]:
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
