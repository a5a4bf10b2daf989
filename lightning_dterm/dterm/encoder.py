"""Task embeddings: what the weighting reads of a task (DTERM eq. 4).

An encoder is deterministic per description: the embedding of one description never depends on what it was encoded
with, so that a resumed run, whose cache starts empty, computes the same bits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_dterm.dterm.embedding_cache import EmbeddingCache, EmbeddingFile
from lightning_dterm.types import CodeTask

CACHE_DIR = "~/.cache/lightning-dterm/embeddings"
_WORD = re.compile(r"\w+|[^\w\s]")


class TaskEncoder(nn.Module):
    """Maps tasks to embeddings: ``e = forward(features(tasks))`` (eq. 4).

    *Features* ``[B, w]`` are all that the embedding of a task is computed from and that does not change while training;
    they are computed once per distinct description and cached. A frozen encoder's features *are* its embeddings, and
    :meth:`forward` is the identity. An encoder that trains (any of its parameters requires a gradient) has other
    features, such as token ids, and a differentiable :meth:`forward`. A meta-objective that remembers groups of earlier
    rollouts remembers their features, and embeds them anew with the present parameters
    (:func:`lightning_dterm.dterm.objective.embed`).

    Subclasses set :attr:`dim` and implement :meth:`embed`.

    Args:
        cache_size: Distinct descriptions whose features are kept in memory, the least recently used dropped first.

    Attributes:
        dim: Width d of an embedding.
    """

    dim: int

    def __init__(self, cache_size: int = 65536) -> None:
        super().__init__()
        self._cache = EmbeddingCache(cache_size)

    @property
    def identity(self) -> str:
        """What tells this encoder from another one of its width, so that no run is resumed with other embeddings.

        The same under any version of the libraries behind it.
        """
        return type(self).__qualname__

    @property
    def trains(self) -> bool:
        """Whether any parameter is trained by the meta-objective."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The parameters that train at ``optimizer.encoder_lr``; all others do at the weighting's rate."""
        return []

    def embed(self, description: str) -> Tensor:
        """The features of one description, float32 on the CPU: its embedding ``[d]`` unless the encoder trains."""
        raise NotImplementedError

    def text_features(self, descriptions: Sequence[str]) -> Tensor:
        """Features ``[B, w]`` of descriptions, float32 on the CPU, from the cache where they were seen before."""
        with torch.no_grad():
            rows = [
                self._cache.get(text.encode("utf-8", "surrogatepass"), partial(self.embed, text))
                for text in descriptions
            ]
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)

    def features(self, tasks: Sequence[CodeTask]) -> Tensor:
        """Features ``[B, w]`` of tasks, float32 on the CPU."""
        return self.text_features([task.description for task in tasks])

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings ``[B, d]`` of features ``[B, w]``, differentiable in the parameters that train."""
        return features

    @torch.no_grad()
    def encode(self, descriptions: Sequence[str]) -> Tensor:
        """Embeddings ``[B, d]`` of descriptions, float32 on the CPU."""
        return self(self.text_features(descriptions)).cpu() if descriptions else torch.zeros(0, self.dim)

    @torch.no_grad()
    def encode_tasks(self, tasks: Sequence[CodeTask]) -> Tensor:
        """Embeddings ``[B, d]`` of tasks, images included where the encoder reads them, float32 on the CPU."""
        return self(self.features(tasks)).cpu() if tasks else torch.zeros(0, self.dim)


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
    """A Hugging Face encoder (eq. 4: CodeBERT, d = 768), mean- or CLS-pooled; frozen unless told otherwise.

    ``e = pool(model(tokens of the description)) [d]``. Frozen, descriptions pass one at a time, without padding: an
    embedding is the same whatever it is encoded with. Embeddings are kept on disk by the hash of the description and of
    all that the encoder is (weights, configuration, tokenizer, pooling, length, version of transformers), so that no
    later epoch, process or run encodes one again.

    With ``trainable`` the features are token ids ``[B, max_length]`` (-1 fills up), the embedding is computed at every
    use, and the meta-step trains the model: it embeds the descriptions of all groups in the meta-objective's memory
    anew, each distinct one once, which costs a forward and a backward pass of up to 128 descriptions a task type.
    Checkpoints then hold the weights. The model always stays in evaluation mode: dropout would make embeddings random.

    Args:
        path: Folder or hub id of any ``AutoModel`` with its tokenizer; of an encoder-decoder the encoder is taken.
            ``package:NAME`` is one shipped here.
        pooling: ``mean`` over all tokens, or ``cls``: the first token.
        max_length: Tokens of a description that are read, at most as many as the model has positions; the rest is cut.
        cache_size: See :class:`TaskEncoder`.
        trainable: Let the meta-objective train the model, at ``optimizer.encoder_lr``.
        cache_dir: Folder in which embeddings of a frozen encoder are kept, one file per encoder; null keeps none.

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
        trainable: bool = False,
        cache_dir: str | None = CACHE_DIR,
    ) -> None:
        super().__init__(cache_size)
        if pooling not in ("mean", "cls"):
            raise ValueError(f"unknown pooling {pooling!r}: choose mean or cls")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self._tokenizer, self.model, unused = _load(path)
        width = getattr(self.model.config, "hidden_size", None)
        if width is None:
            raise ValueError(f"task encoder {path!r} has no hidden_size in its config: choose a text encoder")
        self.dim = int(width)
        self.pooling = pooling
        self.max_length = min(max_length, _positions(self.model.config, self._tokenizer))
        self.trainable = trainable
        self.model.requires_grad_(trainable).eval()
        known = model_identity(self.model, self._tokenizer.get_vocab(), unused)
        self._identity = f"{pooling} {self.max_length} {known}"
        if not trainable and cache_dir is not None:
            key = cache_key(self._identity, self.model, _tokenizer_state(self._tokenizer))
            self._cache = EmbeddingCache(cache_size, EmbeddingFile(cache_dir, key, self.dim))

    @property
    def identity(self) -> str:
        """Pooling, length and a hash of configuration, weights (as loaded) and vocabulary."""
        return self._identity

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The model's parameters, where they train."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> HFEncoder:
        """Stay in evaluation mode: dropout would make embeddings random."""
        super().train(mode)
        self.model.eval()
        return self

    def embed(self, description: str) -> Tensor:
        """The pooled last hidden state ``[d]``, zeros without any token; if it trains, token ids ``[max_length]``."""
        text = description.encode("utf-8", "replace").decode()
        ids = self._tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        tokens = torch.full((self.max_length,), -1.0)
        tokens[: len(ids)] = torch.tensor(ids, dtype=torch.float32)  # exact: vocabularies are below 2^24
        return tokens if self.trainable else self._embed_tokens(tokens[None])[0].cpu()

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings ``[B, d]`` of features: of token ids ``[B, max_length]`` if it trains, else the features."""
        if not self.trainable:
            return features
        distinct, place = features.unique(dim=0, return_inverse=True)
        return self._embed_tokens(distinct)[place]

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        """Pooled last hidden states ``[B, d]`` of right-padded token ids ``[B, max_length]``; float32."""
        device = next(self.model.parameters()).device
        tokens = tokens.to(device)
        length = max(1, int((tokens >= 0).sum(-1).max())) if len(tokens) else 1
        ids = tokens[:, :length].long()
        known = (ids >= 0).float()[..., None]
        some = known.amax(1)  # a description without any token is read as one padding token, and embedded as 0
        ids = ids.masked_fill(ids < 0, self._tokenizer.pad_token_id or 0)
        attended = known[..., 0].bool() | ((torch.arange(length, device=device) == 0) & (some == 0))
        with torch.autocast(device.type, enabled=False):
            hidden = self.model(input_ids=ids, attention_mask=attended.long()).last_hidden_state.float()
        pooled = (hidden * known).sum(1) / known.sum(1).clamp(min=1) if self.pooling == "mean" else hidden[:, 0]
        return cast("Tensor", pooled * some)


def _load(path: str) -> tuple[Any, nn.Module, set[str]]:
    """Tokenizer, model in float32, and the weights of a head that is not read and that the checkpoint lacks.

    Raises:
        FileNotFoundError: Naming the path and the remedy.
    """
    from transformers import AutoModel, AutoTokenizer

    from lightning_dterm.modules.loading import resolve_path

    try:
        folder = resolve_path(path)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        model = model.get_encoder() if model.config.is_encoder_decoder else model
        lacking = {name for name in report["missing_keys"] if name in model.state_dict()}
        needed = sorted(name for name in lacking if not name.startswith("pooler."))
        if needed:
            raise ValueError(f"its checkpoint lacks {len(needed)} of the encoder's weights, such as {needed[0]}")
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"task encoder {path!r} could not be loaded: give the folder of a model saved with save_pretrained "
            f"(with its tokenizer), or a hub id on a machine with network access, or use HashingEncoder ({error})"
        ) from error
    return tokenizer, model, lacking


def _positions(config: Any, tokenizer: Any) -> int:
    """The most tokens that the model can read."""
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in config.model_type:  # its positions start after the padding token's id
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def _tokenizer_state(tokenizer: Any) -> str:
    """All of a fast tokenizer, the vocabulary of another."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return str(backend.to_str()) if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)


def model_identity(model: nn.Module, extra: object, unused: Collection[str] = ()) -> str:
    """A hash of what a model is under any version of transformers, so that an upgrade does not end a run.

    Args:
        model: As loaded. Its configuration is read as it is written there, without the library's own defaults.
        extra: What else belongs to it, as JSON.
        unused: Names of weights that are not read.
    """
    loaded = cast("Any", model.config)
    written, _ = loaded.get_config_dict(loaded.name_or_path)
    config = {k: v for k, v in written.items() if not k.startswith("_") and k != "transformers_version"}
    weights = sorted(_tensor_hash(v) for k, v in model.state_dict().items() if k not in unused)
    content = json.dumps([config, extra, weights], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def cache_key(identity: str, model: nn.Module, reader: str) -> str:
    """What embeddings on disk depend on: the identity, the configuration with all defaults, and the very version."""
    import transformers

    config = {k: v for k, v in cast("Any", model.config).to_dict().items() if k != "_name_or_path"}
    return json.dumps([identity, config, reader, transformers.__version__], sort_keys=True, default=str)


def _tensor_hash(tensor: Tensor) -> str:
    digest = hashlib.blake2b(str(tuple(tensor.shape)).encode(), digest_size=16)
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
