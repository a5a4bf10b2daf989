"""Grammar flags while a completion is being generated, and decoding that cannot leave the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lightning_dterm.attribution.extract import extract_code
from lightning_dterm.attribution.offsets import TokenOffsets
from lightning_dterm.syntax.base import Checker, Verdict, token_flags
from lightning_dterm.syntax.checkers import checker_for

_UNDECODED = "\ufffd"
_WINDOW = 8  # tokens before the new ones that decoding may depend on (merged white space, clean-up)


class _Stream:
    """Text of a growing id sequence, a few tokens decoded at a time; unfinished characters are held back."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._read: list[int] = []  # tokens whose text is out, the last few
        self._held: list[int] = []  # tokens whose characters are not complete

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def peek(self, ids: Sequence[int], last: bool = False) -> str:
        """What ``ids`` would add; ``last``: nothing follows, so nothing is held back."""
        known = self._decode(self._read)
        text = self._decode([*self._read, *self._held, *ids])
        return text[len(known) :] if last or not text.endswith(_UNDECODED) else ""

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """Take in ``ids``; the text that they add."""
        piece = self.peek(ids, last)
        if piece or last:
            self._read = [*self._read, *self._held, *ids][-_WINDOW:]
            self._held = []
        else:
            self._held += ids
        self.text += piece
        return piece


class _Row:
    """One response being written."""

    def __init__(self, tokenizer: Any, checker: Checker, prefix: str, eos_ids: frozenset[int]) -> None:
        self.checker, self.prefix, self.eos_ids = checker, prefix, eos_ids
        self.stream = _Stream(tokenizer)
        self.ids: list[int] = []
        self.code = ""
        self.session = checker.session(prefix)
        self.ended = False

    def push(self, ids: Sequence[int]) -> None:
        """Take in new tokens, up to the first end-of-sequence token."""
        for token in ids:
            if self.ended:
                return
            self.ids.append(token)
            self.ended = token in self.eos_ids
            if self.stream.push([token], last=self.ended):
                self._follow()

    def _follow(self) -> None:
        code = self._extract(self.stream.text)
        if code.startswith(self.code):
            self.session.append(code[len(self.code) :])
        else:  # what looked like code was not: a fence has come, or a thought has closed
            self.session = self.checker.session(self.prefix + code)
        self.code = code

    def _extract(self, text: str) -> str:
        return "".join(text[low:high] for low, high in extract_code(text, self.checker.language))

    def allows(self, token: int) -> bool:
        """Whether the program stays viable (complete, for an end of sequence) with ``token`` next."""
        if token in self.eos_ids:
            return self.session.complete()
        piece = self.stream.peek([token])
        if not piece:  # part of a character is only safe where any character is
            return not self.stream.peek([token], last=True) or self.session.probe(_UNDECODED)
        code = self._extract(self.stream.text + piece)
        if code.startswith(self.code):
            return self.session.probe(code[len(self.code) :])
        return self.checker.viable(self.prefix + code)

    def verdict(self, code: str) -> Verdict:
        """On the final code, from what was found on the way where that is the same text."""
        program = self.prefix + code
        if self.session.text == program and self.session.position is not None:
            return Verdict("error", self.session.position)
        return self.checker.check(program)  # one parse where the program is complete


class SyntaxLogitsProcessor(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """Flags every generated token as it appears, and on demand forbids those that leave the grammar.

    The flags are those of :func:`lightning_dterm.syntax.token_flags` after generation: both rest on one prefix-closed
    ``viable``. A step costs what the open statement costs, not what the program does.

    With ``mask`` the tokens that make the program unviable, and an end of sequence before it is complete, get
    ``-inf``. To test all of the vocabulary is too slow, so the ``top_k`` likeliest tokens are tested (twice as many
    while none fits) and all others forbidden too. Sampling then follows another distribution than the model's: in RL
    the log-probabilities of the update must be taken under the same mask.

    Args:
        tokenizer: The Hugging Face tokenizer that decodes the response.
        language: Of all rows, or one per row.
        prompt_length: Columns of ``input_ids`` that are the (left-padded) prompt.
        eos_ids: Tokens that end a response.
        prefixes: Code that stands before each row's completion and belongs to its program; default none.
        mask: Forbid instead of only flagging.
        top_k: Tokens tested per step and row in ``mask`` mode.

    Raises:
        ValueError: an unknown language, ``top_k`` below 1, or lengths that disagree.
    """

    def __init__(
        self,
        tokenizer: Any,
        language: str | Sequence[str],
        prompt_length: int,
        eos_ids: Sequence[int],
        prefixes: Sequence[str] | None = None,
        mask: bool = False,
        top_k: int = 64,
    ) -> None:
        if top_k < 1 or prompt_length < 0:
            raise ValueError(f"top_k must be at least 1 and prompt_length 0, got {top_k} and {prompt_length}.")
        self.tokenizer, self.prompt_length, self.mask, self.top_k = tokenizer, prompt_length, mask, top_k
        self.languages, self.prefixes = language, prefixes
        self.eos_ids = frozenset(eos_ids)
        self.stuck = 0  # steps in mask mode at which no token at all was allowed
        self._offsets = TokenOffsets(tokenizer)
        self._rows: dict[int, _Row] = {}
        for name in {language} if isinstance(language, str) else set(language):
            checker_for(name)  # fails here rather than in the middle of a generation

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """One step of ``generate``: ``input_ids`` ``[B, L]``, ``scores`` ``[B, V]``. Not for beam search."""
        return self.process(range(len(input_ids)), input_ids[:, self.prompt_length :], scores)

    def process(self, rows: Sequence[int], response_ids: Tensor, logits: Tensor) -> Tensor:
        """One step of any decoding loop that may drop rows which have ended.

        Args:
            rows: Places ``[b]`` in the whole batch of the rows that are given.
            response_ids: ``[b, t]`` what they have generated.
            logits: ``[b, V]`` of their next tokens.

        Returns:
            ``[b, V]`` logits: the same object where nothing is masked.
        """
        for index, ids in zip(rows, response_ids.tolist(), strict=True):
            self._update(int(index), ids)
        if not self.mask:
            return logits
        masked = [self._masked(self._rows[int(index)], row) for index, row in zip(rows, logits, strict=True)]
        return torch.stack(masked) if masked else logits

    def flags(self, responses: Sequence[Sequence[int]]) -> list[list[bool | None]]:
        """Flags of every token of the finished responses (without padding), the last of which no step has seen."""
        return [self._row_flags(index, list(ids)) for index, ids in enumerate(responses)]

    def verdicts(self, responses: Sequence[Sequence[int]]) -> list[Verdict]:
        """What :meth:`flags` rests on; positions count the row's prefix too."""
        found = []
        for index, ids in enumerate(responses):
            row = self._update(index, list(ids))
            text, _ = self._offsets.char_spans(row.ids)
            found.append(row.verdict(row._extract(text)))
        return found

    def _row_flags(self, index: int, ids: list[int]) -> list[bool | None]:
        row = self._update(index, ids)
        text, spans = self._offsets.char_spans(row.ids)
        code_spans = extract_code(text, row.checker.language)
        verdict = row.verdict("".join(text[low:high] for low, high in code_spans))
        flags = token_flags(verdict, spans, code_spans, len(row.prefix), row.ended)
        return [*flags, *[None] * (len(ids) - len(flags))]

    def _update(self, index: int, ids: list[int]) -> _Row:
        row = self._rows.get(index)
        if row is None:
            language = self.languages if isinstance(self.languages, str) else self.languages[index]
            prefix = self.prefixes[index] if self.prefixes is not None else ""
            row = self._rows[index] = _Row(self.tokenizer, checker_for(language), prefix, self.eos_ids)
        seen = len(row.ids)
        if ids[:seen] != row.ids:
            raise ValueError(
                f"SyntaxLogitsProcessor: row {index} does not continue what it was before. Beam search reorders rows: "
                "use sampling or greedy decoding, and a new processor for every call of generate()."
            )
        row.push(ids[seen:])
        return row

    def _masked(self, row: _Row, logits: Tensor) -> Tensor:
        if row.ended or row.session.position is not None:
            return logits
        order = logits.argsort(descending=True, stable=True)
        tested, width, allowed = 0, self.top_k, list[int]()
        while not allowed and tested < len(order):
            batch = order[tested:width].tolist()
            allowed = [token for token in batch if row.allows(token)]
            tested, width = tested + len(batch), width * 2
        if not allowed:
            self.stuck += 1
            return logits
        masked = torch.full_like(logits, float("-inf"))
        keep = torch.tensor(allowed, device=logits.device)
        masked[keep] = logits[keep]
        return masked
