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
        self._ids: list[int] = []  # all tokens
        self._read: list[int] = []  # those whose text is out, the last few
        self._known = ""  # their text
        self._held: list[int] = []  # tokens whose characters are not complete

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def peek(self, token: int, last: bool = False) -> str | None:
        """The text with ``token`` added; None while a character is not complete, unless this is the ``last`` token."""
        window = self._decode([*self._read, *self._held, token])
        if not last and window.endswith(_UNDECODED):
            return None
        if window.startswith(self._known):
            return self.text + window[len(self._known) :]
        return self._decode([*self._ids, token])  # invalid bytes change what SentencePiece decodes before them

    def push(self, token: int, last: bool = False) -> bool:
        """Take in ``token``; whether the text is another now."""
        text = self.peek(token, last)
        self._ids.append(token)
        if text is None:
            self._held.append(token)
            return False
        read, self._held = [*self._read, *self._held, token], []
        known, short = self._decode(read), self._decode(read[-_WINDOW:])
        # not in the middle of a character
        self._read, self._known = (read[-_WINDOW:], short) if known.endswith(short) else (read, known)
        changed, self.text = text != self.text, text
        return changed


class _Row:
    """One response being written."""

    def __init__(self, tokenizer: Any, checker: Checker, prefix: str, eos_ids: frozenset[int]) -> None:
        self.checker, self.prefix, self.eos_ids = checker, prefix, eos_ids
        self.stream = _Stream(tokenizer)
        self.ids: list[int] = []
        self.code = ""
        self.session = checker.session(prefix)
        self.ended = False
        self.support: dict[int, list[int]] = {}  # by position: the tokens that could be chosen there

    def push(self, ids: Sequence[int]) -> None:
        """Take in new tokens, up to the first end-of-sequence token."""
        for token in ids:
            if self.ended:
                return
            self.ids.append(token)
            self.ended = token in self.eos_ids
            if self.stream.push(token, last=self.ended):
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
        text = None if token in self.eos_ids else self.stream.peek(token)
        if text is None:  # part of a character is only safe where any character is
            text = self.stream.peek(token, last=True) or ""
        code = self._extract(text)
        grows = code.startswith(self.code)
        if token in self.eos_ids:
            return self.session.complete() if code == self.code else self.checker.complete(self.prefix + code)
        return self.session.probe(code[len(self.code) :]) if grows else self.checker.viable(self.prefix + code)

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
    ``-inf``. What is left, renormalised, would be the masked distribution; but its normaliser needs a verdict on every
    token of the vocabulary, which is too slow, and testing sampled tokens until one fits draws from it without giving
    its probabilities. So tokens are tested from the likeliest down until the allowed ones are certain to hold ``top_p``
    of the masked distribution, whatever the untested are (or ``top_k`` are tested and one fits), and the rest is
    forbidden too. Sampling follows exactly what is returned, within ``1 - top_p`` of the masked distribution in total
    variation where ``top_k`` does not end the search; ``top_p=0`` allows its likeliest token alone, which is greedy
    decoding. In RL the log-probabilities of the update must be taken over the same tokens: :meth:`support`.

    The response must be code, bare or in a fence that the vocabulary has a token for: prose before it is no program.
    A row whose ``prefix`` is not viable is left alone.

    Args:
        tokenizer: The Hugging Face tokenizer that decodes the response.
        language: Of all rows, or one per row; None for rows that follow no grammar.
        prompt_length: Columns of ``input_ids`` that are the (left-padded) prompt.
        eos_ids: Tokens that end a response.
        prefixes: Code that stands before each row's completion and belongs to its program; default none.
        mask: Forbid instead of only flagging.
        top_k: Most tokens tested per step and row in ``mask`` mode, while one of them fits.
        top_p: Share in [0, 1] of the masked distribution that is found; 1 tests ``top_k`` tokens at every step.
        temperature: Of the sampling that follows, > 0; the shares are taken under it.

    Raises:
        ValueError: an unknown language, or a number out of its range.
    """

    def __init__(
        self,
        tokenizer: Any,
        language: str | Sequence[str | None],
        prompt_length: int,
        eos_ids: Sequence[int],
        prefixes: Sequence[str] | None = None,
        mask: bool = False,
        top_k: int = 64,
        top_p: float = 0.999,
        temperature: float = 1.0,
    ) -> None:
        if top_k < 1 or prompt_length < 0:
            raise ValueError(f"top_k must be at least 1 and prompt_length 0, got {top_k} and {prompt_length}.")
        if not 0 <= top_p <= 1 or temperature <= 0:
            raise ValueError(f"top_p must lie in [0, 1] and temperature above 0, got {top_p} and {temperature}.")
        self.tokenizer, self.prompt_length, self.mask = tokenizer, prompt_length, mask
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature
        self.languages, self.prefixes = language, prefixes
        self.eos_ids = frozenset(eos_ids)
        self.stuck = 0  # steps in mask mode at which no token at all was allowed
        self._offsets = TokenOffsets(tokenizer)
        self._rows: dict[int, _Row] = {}
        for name in {language} if isinstance(language, str) else set(language) - {None}:
            checker_for(str(name))  # fails here rather than in the middle of a generation

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
        pairs = enumerate(zip(rows, response_ids.tolist(), strict=True))
        followed = {place: self._update(int(index), ids) for place, (index, ids) in pairs if self._language(index)}
        if not self.mask:
            return logits
        open_rows = {p: row for p, row in followed.items() if not row.ended and row.session.position is None}
        return self._masked(open_rows, logits) if open_rows else logits

    def support(self, rows: int, length: int) -> Tensor:
        """What ``mask`` has left to choose from, for :attr:`lightning_dterm.types.Rollout.support`.

        Args:
            rows: B, rows of the batch.
            length: T, tokens of the longest response.

        Returns:
            ``[B, T, W]`` int64 token ids, filled up with -1; all -1 where any token was allowed.
        """
        found = [(b, t, s) for b, row in self._rows.items() for t, s in row.support.items() if b < rows and t < length]
        table = torch.full((rows, length, max((len(s) for *_, s in found), default=1)), -1, dtype=torch.long)
        for b, t, tokens in found:
            table[b, t, : len(tokens)] = torch.tensor(tokens)
        return table

    def flags(self, responses: Sequence[Sequence[int]]) -> list[list[bool | None]]:
        """Flags of every token of the finished responses (without padding), the last of which no step has seen."""
        return [
            self._row_flags(index, list(ids)) if self._language(index) else [None] * len(ids)
            for index, ids in enumerate(responses)
        ]

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

    def _language(self, index: int) -> str | None:
        return self.languages if isinstance(self.languages, str) else self.languages[int(index)]

    def _update(self, index: int, ids: list[int]) -> _Row:
        row = self._rows.get(index)
        if row is None:
            language = str(self._language(index))
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

    def _masked(self, rows: dict[int, _Row], logits: Tensor) -> Tensor:
        """``logits`` with ``-inf`` on what the rows, by their places, may not write next."""
        masked = logits.clone()
        places = list(rows)
        likely, shares = self._likeliest(logits[places])
        for place, tokens, masses in zip(places, likely.tolist(), shares.tolist(), strict=True):
            row = rows[place]
            allowed = self._allowed(row, tokens, masses) or self._first_allowed(row, logits[place], tokens)
            if not allowed:
                self.stuck += 1
                continue
            row.support[len(row.ids)] = allowed
            keep = torch.tensor(allowed, device=logits.device)
            masked[place] = float("-inf")
            masked[place, keep] = logits[place, keep]
        return masked

    def _likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The ``top_k`` likeliest tokens ``[b, k]``, of equals the first in the vocabulary first; their shares."""
        likely = logits.topk(min(self.top_k, logits.shape[-1])).indices.sort(-1).values
        likely = likely.gather(-1, logits.gather(-1, likely).argsort(dim=-1, descending=True, stable=True))
        return likely, (logits.float() / self.temperature).softmax(-1).gather(-1, likely).double()

    def _allowed(self, row: _Row, tokens: list[int], shares: list[float]) -> list[int]:
        """Those of ``tokens`` that fit, up to where they are sure to hold ``top_p`` of all that do."""
        allowed, found, untested = list[int](), 0.0, 1.0
        for token, share in zip(tokens, shares, strict=True):
            untested -= share
            if row.allows(token):
                allowed.append(token)
                found += share
            if allowed and self.top_p < 1 and found >= self.top_p * (found + max(untested, 0.0)):
                break
        return allowed

    @staticmethod
    def _first_allowed(row: _Row, logits: Tensor, tested: list[int]) -> list[int]:
        refused, order = set(tested), logits.argsort(descending=True, stable=True).tolist()
        return next(([token] for token in order if token not in refused and row.allows(token)), [])
