from __future__ import annotations

import logging
from importlib import resources
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LogitsProcessorList, Qwen2Config, Qwen2ForCausalLM

from lightning_dterm.attribution.extract import extract_code
from lightning_dterm.attribution.offsets import TokenOffsets
from lightning_dterm.rewards import SyntaxReward
from lightning_dterm.syntax import SyntaxLogitsProcessor, Verdict, checker_for, token_flags
from lightning_dterm.types import Sample
from tests.rewards_common import SQUARE, make_task
from tests.test_attribution_offsets import FAMILIES

REWARD = SyntaxReward()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(resources.files("lightning_dterm") / "assets" / "quickstart"))


def make_sample(text: str, truncated: bool = False, **task: Any) -> Sample:
    made = make_task(**task)
    return Sample(made, text, extract_code(text, made.language), truncated)


def score(text: str, truncated: bool = False, **task: Any) -> Any:
    return REWARD.score([make_sample(text, truncated, **task)])[0]


def test_values_and_evidence() -> None:
    assert score(SQUARE).value == 1.0
    assert score("").value == score("```python\n```").value == 0.0
    broken = score("def f(x):\n    return x x\n")
    assert broken.value == pytest.approx(0.5 * len("deff(x):returnx") / len("deff(x):returnxx"))
    assert [(span.start, span.end) for span in broken.spans] == [(23, 24)]
    assert broken.details["method"] == "cpython"
    unfinished = score("def f(x):\n    return (x\n")
    assert unfinished.value == 0.5
    assert [(span.start, span.end) for span in unfinished.spans] == [(22, 23)]
    cut = score("def f(x):\n    return (x", truncated=True)
    assert (cut.value, cut.spans) == (0.5, ())
    misplaced = score("x = 1\nreturn x\n")
    assert (misplaced.value, misplaced.details["verdict"]) == (0.5, "misplaced")
    assert [(span.start, span.end) for span in misplaced.spans] == [(6, 12)]


def test_a_later_mistake_is_worth_more_but_never_as_much_as_none() -> None:
    values = [score(SQUARE * n + "x x\n").value for n in range(20)]
    assert values == sorted(values)
    assert values[-1] < 0.5 < score(SQUARE).value


def test_the_programs_prefix_counts_but_is_not_blamed(caplog: pytest.LogCaptureFixture) -> None:
    assert score("    return x\n", prefix="def f(x):\n").value == 1.0
    assert score("  y = 1\n return x\n", prefix="def f(x):\n").value < 0.5
    result = score("return x\n", prefix="def f(x):\n")  # not indented: the completion's own mistake
    assert [(span.start - 10, span.end - 10) for span in result.spans] == [(0, 6)]
    with caplog.at_level(logging.WARNING):
        result = score("return x\n", prefix="def f(x:: \n")
    assert (result.value, result.error, result.spans) == (None, None, ())
    assert "no start of a program" in caplog.text


@pytest.mark.parametrize("language", ["java", "c", "cpp", "csharp", "javascript"])
def test_other_languages(language: str) -> None:
    good = "function f(a) { return a; }" if language == "javascript" else "int f(int a) { return a; }"
    bad = good.replace("return a;", "return a +;")
    assert score(good, language=language).value == 1.0
    result = score(bad, language=language)
    assert 0 < result.value < 0.5
    assert [bad[span.start : span.end] for span in result.spans] == [";"]
    assert result.details["method"] == "tree-sitter"
    assert score(good[:-1], language=language).value == 0.5


def test_what_it_applies_to_and_what_it_takes() -> None:
    assert REWARD.applies_to(make_task())
    assert not REWARD.applies_to(make_task(language="text"))
    REWARD.setup()
    with pytest.raises(ValueError, match="partial must lie in"):
        SyntaxReward(partial=1.0)


def test_flags_by_hand(tokenizer: Any) -> None:
    spans = [(0, 4), (4, 10), (10, 12), (12, 15), (15, 15)]
    code = [(4, 15)]
    assert token_flags(Verdict("ok", 11), spans, code) == [None, True, True, True, None]
    assert token_flags(Verdict("error", 7), spans, code) == [None, True, False, None, None]
    assert token_flags(Verdict("error", 6), spans, code) == [None, False, None, None, None]
    assert token_flags(Verdict("error", 10), spans, code, 3) == [None, True, False, None, None]
    assert token_flags(Verdict("error", 3), spans, code, 3) == [None] * 5
    assert token_flags(Verdict("unfinished", 11), spans, code) == [None, True, True, True, False]
    assert token_flags(Verdict("unfinished", 11), spans, code, finished=False) == [None, True, True, True, None]


COMPLETIONS = [
    SQUARE,
    "def f(x):\n    return x x\n", "Here is it:\n```python\n" + SQUARE + "```\nDone.", "x = 'é😀' y", "x = 'a\ny = 1\n",
    "def f(x):\n\treturn (x]\n",
    "```python\nif x:\npass\n```", "<think>let x = )</think>x = 1\n", "", "```\nx = (1,\n```",
    "for i in range(3):\n    print(i", "Sure!\n\n```java\nint x;\n```\n```python\nx = = 1\n```",
]  # fmt: skip


def brute_force(tokenizer: Any, ids: list[int], prefix: str, eos: int) -> list[bool | None]:
    """The definition: decode every prefix, ask ``viable`` of all of its code."""
    text, spans = TokenOffsets(tokenizer).char_spans(ids)
    code_spans = extract_code(text, "python")
    checker, flags, failed = checker_for("python"), list[bool | None](), not checker_for("python").viable(prefix)
    for start, end in spans:
        code = "".join(text[low : min(high, end)] for low, high in code_spans if low < end)
        is_code = any(start < high and end > low for low, high in code_spans)
        if failed or not is_code:
            flags.append(None)
        else:
            failed = not checker.viable(prefix + code)
            flags.append(not failed)
    program = prefix + "".join(text[low:high] for low, high in code_spans)
    if ids and ids[-1] == eos and not failed and not checker.complete(program):
        flags[-1] = False
    return flags


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_online_post_hoc_and_brute_force_flags_are_the_same(family: str, data: st.DataObject) -> None:
    """Real completions and random ids (broken UTF-8, special tokens) of several tokenizer families."""
    tokenizer = _built(family)
    eos = tokenizer.convert_tokens_to_ids("</s>")
    batch = []
    for _ in range(3):
        if data.draw(st.booleans()):
            ids = tokenizer(data.draw(st.sampled_from(COMPLETIONS)), add_special_tokens=False).input_ids
        else:
            ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1).filter(lambda i: i != eos), max_size=12))
        batch.append([*ids, eos] if data.draw(st.booleans()) else list(ids))
    prefixes = [data.draw(st.sampled_from(["", "def g():\n    pass\n", "x = "])) for _ in batch]
    processor = SyntaxLogitsProcessor(tokenizer, "python", 0, [eos], prefixes)
    for step in range(max(map(len, batch))):
        rows = [row for row, ids in enumerate(batch) if len(ids) >= step]
        for row in rows:
            processor.process(
                [row], torch.tensor([batch[row][:step]], dtype=torch.long), torch.zeros(1, len(tokenizer))
            )
    online = processor.flags(batch)
    for ids, prefix, found in zip(batch, prefixes, online, strict=True):
        text, spans = TokenOffsets(tokenizer).char_spans(ids)
        task = make_task(prefix=prefix)
        sample = Sample(task, text, extract_code(text, "python"), truncated=not ids or ids[-1] != eos)
        assert found == REWARD.flags(sample, spans) == brute_force(tokenizer, ids, prefix, eos), (text, prefix)


_TOKENIZERS: dict[str, Any] = {}


def _built(family: str) -> Any:
    if family not in _TOKENIZERS:
        _TOKENIZERS[family] = FAMILIES[family]()
    return _TOKENIZERS[family]


def tiny_model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def test_constrained_decoding_with_generate_never_leaves_the_grammar(tokenizer: Any) -> None:
    """A random model, which alone writes nonsense at once."""
    model, prompts = tiny_model(tokenizer), torch.tensor([tokenizer("x = 1\n").input_ids] * 3)
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": True, "top_k": 0}
    eos = [tokenizer.eos_token_id]
    flagged = []
    for mask in (False, True):
        torch.manual_seed(1)
        processor = SyntaxLogitsProcessor(tokenizer, "python", prompts.shape[1], eos, mask=mask, top_k=16)
        output = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            logits_processor=LogitsProcessorList([processor]),
            **settings,
        )
        responses = [_until(row, eos[0]) for row in output[:, prompts.shape[1] :].tolist()]
        flagged.append(sum(False in flags for flags in processor.flags(responses)))
        if mask:
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
            assert processor.stuck == 0
            assert all(checker_for("python").viable(text) for text in texts)
    assert flagged == [3, 0]


def _until(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def test_the_end_is_only_allowed_after_a_complete_program(tokenizer: Any) -> None:
    eos = tokenizer.eos_token_id
    for text, allowed in (("x = (1", False), ("x = (1)", True)):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        logits = torch.zeros(1, len(tokenizer))
        logits[0, eos] = 5.0
        masked = SyntaxLogitsProcessor(tokenizer, "python", 0, [eos], mask=True, top_k=8)(ids, logits)
        assert (masked[0, eos] == 5.0) == allowed
        assert masked.isfinite().any()


def test_flag_mode_leaves_the_logits_alone_and_rows_may_not_move(tokenizer: Any) -> None:
    processor = SyntaxLogitsProcessor(tokenizer, ["python", "java"], 0, [0])
    logits = torch.randn(2, 5)
    assert processor(torch.tensor([[5], [6]]), logits) is logits
    with pytest.raises(ValueError, match="row 0 does not continue"):
        processor(torch.tensor([[6, 7], [5, 7]]), logits)
    with pytest.raises(ValueError, match="No syntax flags"):
        SyntaxLogitsProcessor(tokenizer, "cobol", 0, [0])
    with pytest.raises(ValueError, match="top_k must be"):
        SyntaxLogitsProcessor(tokenizer, "python", 0, [0], top_k=0)
