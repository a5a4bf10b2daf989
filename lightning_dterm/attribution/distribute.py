r"""From component scores to token rewards, conserving every component's weighted score.

For one sample and one component with weight :math:`\alpha` and score :math:`r \le c`, let :math:`u_t` be the
uniform share of token t (1/N over the N code tokens) and :math:`b_t` its share of the blame (both sum to 1). The
ceiling c is what a perfect sample would have; 1 for raw scores. Then

.. math:: \text{uniform: } \alpha r u_t \qquad \text{dense: } \alpha c u_t - \alpha (c - r) b_t

A score is a reward, while evidence marks where score was *lost*: so with evidence the full credit c is spread over all
code and the loss c - r is charged to the blamed tokens, the place that must change. Both sum to :math:`\alpha r`. A
component without evidence has no place to blame and is uniform. This sign convention is ours: DESIGN section 3 asks
only that the sum is conserved.

*Potential-based shaping* keeps the terminal reward and moves bad news forward in time. With W_t the summed weights of
the component's spans that were complete before token t, the state before token t has the potential

.. math:: \Phi_t = -s \alpha (1 - e^{-W_t}), \qquad \Phi_{end} = 0, \qquad
    r'_t = r_t + \gamma \Phi_{t+1} - \Phi_t

(Ng, Harada and Russell 1999, theorem 1; s is ``potential_scale``). The token that completes a span pays, the last
token gets it all back, so the discounted sum is that of ``terminal`` for *every* completion: no policy gains or loses
by it, and the optimal policy is unchanged. Where a span also depends on nothing but the tokens up to its end (a syntax
error, a line too long), :math:`\Phi` is a function of the state: then every advantage is unchanged at every token,
and the critic learns :math:`V - \Phi`. ``dense`` and ``uniform`` conserve the undiscounted sum of each completion,
too (with gamma 1 they are shaping with a potential that looks ahead), but which token gets the credit differs, on
purpose.

Definitions at the edges:

* *Code tokens* are tokens inside the response mask whose character span overlaps a code span.
* A span of evidence shares its weight over the code tokens it overlaps, by the characters of code they have in common;
  overlapping spans add up. A span that overlaps no code token (empty, outside the code, or beyond the kept tokens of a
  truncated response) is ignored; where none is left the component is uniform (with ``potential``: terminal). A span
  that reaches beyond the kept tokens is complete at the last of them.
* Without any code token the whole weighted score goes to the last response token (the end-of-sequence token of a
  finished response). A sample without a single response token receives nothing.
* A masked component (NaN score) contributes 0, whatever its weight.
* With ``potential`` and gamma below 1 every token behind the first complete span has a small reward, prose included, as
  the theorem demands; with gamma 1 only tokens that complete a span, and the last, have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_dterm.types import Span

CharSpan = tuple[int, int]
Mode = Literal["dense", "uniform", "terminal", "potential"]
_NORMALIZE_RANGE = (0.25, 4.0)


@dataclass(frozen=True, eq=False)
class Attribution:
    """One batch of component scores and where each may land; :meth:`total` and :meth:`components` place them.

    Args:
        scores: ``[B, n]`` component values, NaN where masked.
        alpha: ``[B, n]`` weights.
        evidence: B mappings from component name to spans, in the character offsets of ``token_spans``.
        component_names: The n components in column order.
        token_spans: B lists with the character span of each of the first tokens of the response; tokens beyond the
            end of a list have none.
        code_spans: B lists of the disjoint character ranges that are code.
        response_mask: ``[B, T]`` the response's tokens.
        mode: ``dense`` (evidence placed), ``uniform`` (over the code tokens), ``terminal`` (all at the last
            response token, as trainers with one scalar reward do) or ``potential`` (terminal, shaped by evidence).
        length_normalize: Multiply sample b by ``clamp(reference / N_b, 0.25, 4)``, ``N_b`` its number of code tokens:
            a loss that averages over tokens then weighs each sample about equally instead of by its length. This
            *changes* the sums. Samples without code tokens keep factor 1.
        reference_length: The ``reference`` above; default the mean of ``N_b`` over samples that have code tokens.
        gamma: Discount of the advantages, in [0, 1]; only ``potential`` reads it.
        potential_scale: The s above, positive and finite; only ``potential`` reads it.
        ceilings: ``[B, n]`` what a perfect sample would have; None is 1, as raw scores in [0, 1] have it. Only
            ``dense`` reads it.

    Raises:
        ValueError: Shapes, names or lengths disagree, an evidence weight is negative or not finite, the mode is
            unknown, or ``gamma`` or ``potential_scale`` is out of range.
    """

    scores: Tensor
    alpha: Tensor
    evidence: Sequence[Mapping[str, Sequence[Span]]]
    component_names: Sequence[str]
    token_spans: Sequence[Sequence[CharSpan]]
    code_spans: Sequence[Sequence[CharSpan]]
    response_mask: Tensor
    mode: Mode = "dense"
    length_normalize: bool = False
    reference_length: float | None = None
    gamma: float = 1.0
    potential_scale: float = 1.0
    ceilings: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"unknown attribution mode {self.mode!r}: choose one of {', '.join(get_args(Mode))}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma}")
        check_potential_scale(self.potential_scale)
        self._check_shapes()
        self._check_evidence()

    def total(self) -> Tensor:
        """Token rewards of all components together (summed in float64).

        Returns:
            ``[B, T]`` float32 on the device of ``response_mask``. Without ``length_normalize`` each row sums to
            ``sum_i alpha_i score_i`` over its unmasked components (to 1e-6; with ``potential`` and gamma below 1 it
            is the discounted sum that equals ``terminal``'s); tokens outside the response mask, and in the modes
            ``dense`` and ``uniform`` tokens that are not code, are exactly 0.
        """
        return self._parts().sum(1).float().to(self.response_mask.device)

    def components(self) -> Tensor:
        """Token rewards of each component, ``[B, n, T]`` float32 on the device of ``response_mask``."""
        return self._parts().float().to(self.response_mask.device)

    def _check_shapes(self) -> None:
        batch, length = self.response_mask.shape
        wanted = (batch, len(self.component_names))
        for name in ("scores", "alpha", "ceilings"):
            if getattr(self, name) is None:
                continue
            shape = tuple(getattr(self, name).shape)
            if shape != wanted:
                raise ValueError(f"{name} has shape {shape}, expected {wanted} (samples, components)")
        for name in ("evidence", "token_spans", "code_spans"):
            rows = len(getattr(self, name))
            if rows != batch:
                raise ValueError(f"{name} has {rows} rows for {batch} samples")
        longest = max((len(row) for row in self.token_spans), default=0)
        if longest > length:
            raise ValueError(f"token_spans has a row of {longest} tokens, the response mask only {length} columns")

    def _check_evidence(self) -> None:
        known = list(self.component_names)
        for row in self.evidence:
            unknown = set(row) - set(known)
            if unknown:
                raise ValueError(f"evidence of unknown component(s) {sorted(unknown)}: known are {known}")
            for name, spans in row.items():
                if any(not 0 <= span.weight < float("inf") for span in spans):
                    raise ValueError(
                        f"evidence of component {name!r} has a span whose weight is negative or not finite"
                    )

    def _parts(self) -> Tensor:
        """``[B, n, T]`` float64 on the CPU."""
        mask = self.response_mask.detach().cpu().bool()
        scores = self.scores.detach().cpu().double()
        weight = torch.where(scores.isnan(), 0.0, self.alpha.detach().cpu().double())
        scores = scores.nan_to_num(0.0)
        full = torch.ones_like(scores) if self.ceilings is None else self.ceilings.detach().cpu().double()
        full = full.nan_to_num(0.0)
        starts, ends = _token_bounds(self.token_spans, mask.shape[1])
        code = mask & (_code_overlap(starts, ends, self.code_spans) > 0)
        counts = code.sum(-1, keepdim=True)
        last = _last_token(mask)
        shares = code.double() / counts.clamp(min=1)
        at_end = self.mode in ("terminal", "potential")
        uniform = last if at_end else torch.where(counts > 0, shares, last)
        parts = (weight * scores)[:, :, None] * uniform[:, None, :]
        if self.mode in ("dense", "potential"):
            for row, spans_of in enumerate(self.evidence):
                if not (counts[row] and spans_of):
                    continue
                meeting = _meet(spans_of, self.component_names, self.code_spans[row], starts[row], ends[row], code[row])
                if self.mode == "dense":
                    columns, blame = meeting.blame()
                    best = full[row, columns, None]
                    loss = best - scores[row, columns, None]
                    parts[row, columns] = weight[row, columns, None] * (best * uniform[row] - loss * blame)
                else:
                    shaping = _shaping(meeting.completed(), mask[row], last[row], self.gamma)
                    parts[row] += self.potential_scale * weight[row, :, None] * shaping
        if self.length_normalize:
            parts *= _length_factor(counts.squeeze(-1), self.reference_length)[:, None, None]
        return parts


def code_token_mask(
    token_spans: Sequence[Sequence[CharSpan]], code_spans: Sequence[Sequence[CharSpan]], response_mask: Tensor
) -> Tensor:
    """``[B, T]`` bool: tokens of the response that overlap code."""
    starts, ends = _token_bounds(token_spans, response_mask.shape[1])
    overlap = _code_overlap(starts, ends, code_spans)
    return (overlap > 0).to(response_mask.device) & response_mask.bool()


def _length_factor(counts: Tensor, reference: float | None) -> Tensor:
    """``[B]`` factor of each sample, from its number of code tokens."""
    has_code = counts > 0
    if reference is None:
        reference = float(counts[has_code].double().mean()) if has_code.any() else 1.0
    return torch.where(has_code, (reference / counts.clamp(min=1).double()).clamp(*_NORMALIZE_RANGE), 1.0)


def _last_token(mask: Tensor) -> Tensor:
    """``[B, T]`` float64 one-hot of each row's last response token; all 0 for a row without any."""
    position = torch.arange(1, mask.shape[1] + 1)
    furthest = (mask * position).amax(-1, keepdim=True) if mask.shape[1] else torch.zeros(mask.shape[0], 1)
    return (mask & (position == furthest)).double()


def _token_bounds(token_spans: Sequence[Sequence[CharSpan]], length: int) -> tuple[Tensor, Tensor]:
    """``[B, T]`` starts and ends in characters; (0, 0) where a token has no span."""
    padded = [[*row, *([(0, 0)] * (length - len(row)))] for row in token_spans]
    bounds = torch.tensor(padded, dtype=torch.int64).reshape(len(padded), length, 2)
    return bounds[..., 0], bounds[..., 1]


def _code_overlap(starts: Tensor, ends: Tensor, code_spans: Sequence[Sequence[CharSpan]]) -> Tensor:
    """``[B, T]`` characters of code in each token."""
    overlap = torch.zeros_like(starts)
    most = max((len(row) for row in code_spans), default=0)
    padded = torch.tensor([[*row, *([(0, 0)] * (most - len(row)))] for row in code_spans], dtype=torch.int64)
    padded = padded.reshape(len(code_spans), most, 2)
    for index in range(most):
        low, high = padded[:, index, 0, None], padded[:, index, 1, None]
        overlap += (torch.minimum(ends, high) - torch.maximum(starts, low)).clamp(min=0)
    return overlap


class _Meeting(NamedTuple):
    """Where one sample's S weighty spans of evidence meet its code tokens.

    Attributes:
        columns: n, the number of components.
        owners: ``[S]`` int64, the component of each span.
        weights: ``[S]`` float64, positive.
        overlap: ``[S, T]`` float64, characters of code that span and token have in common.
    """

    columns: int
    owners: Tensor
    weights: Tensor
    overlap: Tensor

    def blame(self) -> tuple[Tensor, Tensor]:
        """Columns ``[c]`` of the components whose evidence meets a code token, and shares ``[c, T]`` (sum 1)."""
        largest = self.weights.new_zeros(self.columns).scatter_reduce_(0, self.owners, self.weights, "amax")
        relative = self.weights / largest[self.owners]  # only ratios matter, and sums must not overflow
        share = self.overlap / self.overlap.sum(-1, keepdim=True).clamp(min=1)
        blame = share.new_zeros(self.columns, share.shape[1]).index_add_(0, self.owners, share * relative[:, None])
        mass = blame.sum(-1, keepdim=True)
        columns = (mass.squeeze(-1) > 0).nonzero().squeeze(-1)
        return columns, blame[columns] / mass[columns]

    def completed(self) -> Tensor:
        """``[n, T]`` float64: weights of the spans whose last code token this is."""
        position = torch.arange(1, self.overlap.shape[1] + 1)
        furthest = ((self.overlap > 0) * position).amax(-1, keepdim=True)
        ends = (furthest == position) * self.weights[:, None]
        return ends.new_zeros(self.columns, ends.shape[1]).index_add_(0, self.owners, ends)


def _meet(
    spans_of: Mapping[str, Sequence[Span]],
    component_names: Sequence[str],
    code_spans: Sequence[CharSpan],
    starts: Tensor,
    ends: Tensor,
    code: Tensor,
) -> _Meeting:
    weights: list[float] = []
    owners: list[int] = []  # the column of each weight
    pieces: list[tuple[int, int, int]] = []  # (index into weights, start, end): the spans clipped to code
    for column, name in enumerate(component_names):
        for span in spans_of.get(name, ()):
            clipped = [(max(span.start, low), min(span.end, high)) for low, high in code_spans]
            inside = [(low, high) for low, high in clipped if low < high]
            if inside and span.weight > 0:
                pieces += [(len(weights), low, high) for low, high in inside]
                weights.append(span.weight)
                owners.append(column)
    bounds = torch.tensor(pieces, dtype=torch.int64).reshape(-1, 3)
    overlap = torch.minimum(ends, bounds[:, 2, None]) - torch.maximum(starts, bounds[:, 1, None])
    overlap = overlap.clamp(min=0).double() * code  # [pieces, T]
    per_span = overlap.new_zeros(len(weights), len(starts)).index_add_(0, bounds[:, 0], overlap)
    return _Meeting(
        len(component_names),
        torch.tensor(owners, dtype=torch.int64),
        torch.tensor(weights, dtype=torch.float64),
        per_span,
    )


def _shaping(completed: Tensor, mask: Tensor, last: Tensor, gamma: float) -> Tensor:
    """``[n, T]`` gamma Phi' - Phi for scale and weight 1; ``completed`` as above, ``mask`` and ``last`` ``[T]``."""
    after = -torch.expm1(-completed.cumsum(-1))  # minus the potential of the state behind each token
    before = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], -1)
    following = torch.where(last.bool(), 0.0, -after)
    return (gamma * following + before) * mask


def check_potential_scale(scale: float) -> None:
    """Raise ``ValueError`` where the scale of the potential is not positive and finite."""
    if not 0 < scale < float("inf"):
        raise ValueError(f"potential_scale must be positive and finite, got {scale}")
