"""Task embeddings: what the weighting reads of a task (DTERM eq. 4).

An encoder is deterministic per description: the embedding of one description never depends on what it was encoded
with, so that a resumed run, whose cache starts empty, computes the same bits.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

_WORD = re.compile(r"\w+|[^\w\s]")


class TaskEncoder(nn.Module):
    """Maps task descriptions to embeddings, each distinct description once.

    Subclasses set :attr:`dim` and implement :meth:`embed`.

    Args:
        cache_size: Distinct descriptions whose embeddings are kept, the least recently used dropped first.
    """

    dim: int

    def __init__(self, cache_size: int = 65536) -> None:
        super().__init__()
        if cache_size < 1:
            raise ValueError(f"cache_size must be at least 1, got {cache_size}")
        self._cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def embed(self, description: str) -> Tensor:
        """The embedding ``[d]`` of one description, float32 on the CPU."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, descriptions: Sequence[str]) -> Tensor:
        """Embeddings ``[B, d]`` in float32 on the CPU, from the cache where the description was seen before."""
        rows: list[Tensor] = []
        for description in descriptions:
            row = self._cache.get(description)
            if row is None:
                row = self._cache[description] = self.embed(description)
                if len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end(description)
            rows.append(row)
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)


class HashingEncoder(TaskEncoder):
    """Signed feature hashing of lower-case words and word bigrams (Weinberger et al. 2009), L2-normalised.

    The offline default and the ablation of a learned encoder. The hash is BLAKE2b: the same on every machine and run.
    A description without words has the zero embedding.

    Args:
        dim: Embedding width d.
        cache_size: See :class:`TaskEncoder`.
    """

    def __init__(self, dim: int = 256, cache_size: int = 65536) -> None:
        super().__init__(cache_size)
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim

    def embed(self, description: str) -> Tensor:
        """The normalised, signed counts ``[d]`` of the description's words and bigrams."""
        words = _WORD.findall(description.lower())
        vector = torch.zeros(self.dim)
        for feature in (*words, *(f"{left} {right}" for left, right in pairwise(words))):
            code = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "little")
            vector[(code >> 1) % self.dim] += 1.0 if code & 1 else -1.0
        norm = vector.norm()
        return vector / norm if norm > 0 else vector


class HFEncoder(TaskEncoder):
    """A frozen Hugging Face encoder (DTERM: CodeBERT, d = 768), mean- or CLS-pooled.

    Descriptions pass one at a time, without padding, so that an embedding is the same whatever it is encoded with.
    The model always stays in evaluation mode, and its weights are no part of a checkpoint.

    Args:
        path: Folder or hub id of any ``AutoModel`` with its tokenizer.
        pooling: ``mean`` over all tokens, or ``cls``: the first token.
        max_length: Tokens of a description that are read; the rest is cut.
        cache_size: See :class:`TaskEncoder`.

    Raises:
        ValueError: The pooling is unknown, ``max_length`` is not positive or the model has no embedding width.
        FileNotFoundError: There is no model at ``path``.
    """

    def __init__(
        self,
        path: str = "microsoft/codebert-base",
        pooling: Literal["mean", "cls"] = "mean",
        max_length: int = 128,
        cache_size: int = 65536,
    ) -> None:
        super().__init__(cache_size)
        if pooling not in ("mean", "cls"):
            raise ValueError(f"unknown pooling {pooling!r}: choose mean or cls")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = cast("nn.Module", AutoModel.from_pretrained(path, dtype=torch.float32))
        except (OSError, ValueError, KeyError) as error:
            raise FileNotFoundError(
                f"task encoder {path!r} could not be loaded: give the folder of a model saved with save_pretrained "
                f"(with its tokenizer), or a hub id on a machine with network access, or use HashingEncoder ({error})"
            ) from error
        width = getattr(self.model.config, "hidden_size", None)
        if width is None:
            raise ValueError(f"task encoder {path!r} has no hidden_size in its config: choose a text encoder")
        self.dim = int(width)
        self.pooling = pooling
        self.max_length = max_length
        self.model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> HFEncoder:
        """Stay in evaluation mode: the encoder is frozen, and dropout would make embeddings random."""
        super().train(mode)
        self.model.eval()
        return self

    def embed(self, description: str) -> Tensor:
        """The pooled last hidden state ``[d]``; zeros for a description without any token."""
        encoded = self._tokenizer(description, truncation=True, max_length=self.max_length, return_tensors="pt")
        device = next(self.model.parameters()).device
        if encoded["input_ids"].shape[1] == 0:
            return torch.zeros(self.dim)
        arguments = {name: encoded[name].long().to(device) for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            hidden = self.model(**arguments).last_hidden_state[0]
        pooled = hidden.mean(0) if self.pooling == "mean" else hidden[0]
        return cast("Tensor", pooled.float().cpu())
