"""Compressed policy gradients of single responses in the last layer, by-product of the scoring pass."""

from __future__ import annotations

import torch
from torch import Tensor

SEED = 20180612  # fixed: sketches of different rollouts, processes and resumed runs must be comparable


class GradientSketch:
    """Maps a response to a vector whose inner products are those of last-layer score functions, in expectation.

    The exact quantity is the gradient of a response's log-probability in a matrix W added to the model's output head,
    ``softmax((head(h) + W h) / T)``, at W = 0:

        psi_j = sum_t (1/T) (onehot(a_jt) - p_jt) h_jt^T        [V, h]

    with p the distribution sampled from and h what the head reads (the last hidden state; the model's own logits where
    it is run row by row and shows no more). Where the head is a plain projection this is the gradient in its weights.
    Tokens that the policy was sure of add next to nothing. Per sample V x h numbers would be kept, so both sides are
    projected by Gaussian matrices A ``[V, size]`` and C ``[h, size]`` of variance 1/size,

        f_j = sum_t (A^T (onehot(a_jt) - p_jt) / T) (C^T h_jt)^T        [size^2]

    and ``E <f_j, f_l> = <psi_j, psi_l>`` over A and C; the relative error of an inner product falls with ``1/size``
    for gradients spread over many directions, with ``1/sqrt(size)`` for those of rank one. It costs ``size/h`` of a
    head's forward. Gradients of samples compressed by random projections: Park et al. 2023 (TRAK, arXiv:2303.14186),
    Xia et al. 2024 (LESS, arXiv:2402.04333); in the last layer: Ash et al. 2020 (BADGE, arXiv:1906.03671).

    Args:
        size: Columns of A and of C.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, size: int = 32) -> None:
        if size < 1:
            raise ValueError(f"sketch must be at least 1, got {size}")
        self.size = size
        self._projections: dict[tuple[int, str], Tensor] = {}

    @property
    def width(self) -> int:
        """D, the length of a sketch."""
        return self.size**2

    def projection(self, rows: int, side: str, device: torch.device) -> Tensor:
        """``[rows, size]`` float32: A where ``side`` is ``vocabulary``, C where it is ``hidden``."""
        known = self._projections.get((rows, side))
        if known is None or known.device != device:
            # drawn on the CPU, so that all devices hold the same
            generator = torch.Generator().manual_seed(SEED + (side == "hidden"))
            known = (torch.randn(rows, self.size, generator=generator) / self.size**0.5).to(device)
            self._projections[rows, side] = known
        return known

    def tally(self, rows: Tensor, count: int, labels: Tensor, temperature: float) -> SketchTally:
        """What sums up the sketches of ``count`` responses.

        Args:
            rows: ``[N]`` int64, the response that each scored token belongs to.
            count: B, the number of responses.
            labels: ``[N]`` int64 the tokens.
            temperature: T of the distribution sampled from.
        """
        return SketchTally(self, rows, count, labels, temperature)


class SketchTally:
    """Adds up the sketches of a batch while its logits are at hand, chunk by chunk; see :class:`GradientSketch`."""

    def __init__(self, sketch: GradientSketch, rows: Tensor, count: int, labels: Tensor, temperature: float) -> None:
        self.sketch, self.rows, self.labels, self.temperature = sketch, rows, labels, temperature
        self.total = torch.zeros(count, sketch.width, device=rows.device)

    @torch.no_grad()
    def __call__(self, part: slice, hidden: Tensor, logits: Tensor) -> None:
        """Take in the tokens ``part``: what the head read ``[n, h]``, and float32 ``logits [n, V]`` over T."""
        with torch.autocast(logits.device.type, enabled=False):
            vocabulary = self.sketch.projection(logits.shape[-1], "vocabulary", logits.device)
            missed = vocabulary[self.labels[part]] - logits.softmax(-1) @ vocabulary
            read = hidden.float() @ self.sketch.projection(hidden.shape[-1], "hidden", hidden.device)
            outer = ((missed / self.temperature)[:, :, None] * read[:, None, :]).flatten(1)
            # a product, since adding by index is not reproducible on a GPU
            self.total += torch.nn.functional.one_hot(self.rows[part], len(self.total)).T.to(outer) @ outer
