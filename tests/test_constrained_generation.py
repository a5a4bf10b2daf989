"""Constrained decoding in our own generation and in PPO: against masking by brute force over the whole vocabulary."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lightning_dterm.attribution.extract import extract_code
from lightning_dterm.attribution.offsets import TokenOffsets
from lightning_dterm.modules.actor_critic import ActorCritic, CriticConfig, Scores
from lightning_dterm.modules.config import GenerationConfig, KLConfig, PPOConfig
from lightning_dterm.modules.constraint import syntax_processor
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.rewards import SyntaxReward
from lightning_dterm.rl.generation import Responses, generate, sample_uniforms
from lightning_dterm.rl.logprobs import token_logprobs
from lightning_dterm.syntax import SyntaxLogitsProcessor, checker_for
from lightning_dterm.types import CodeTask, Rollout, Sample
from tests.test_attribution_offsets import FAMILIES
from tests.test_ppo_module import Record
from tests.tiny import CodeDataModule, ScoreOf, tiny_trainer

PIECES = ["</s>", "<pad>", "x", "y", "=", "(", ")", " ", "\n", "+", "1", "if", ":", "'", "#", "return"]
EOS, PAD = 0, 1


def tiny_tokenizer() -> Any:
    """Sixteen tokens whose texts are simply joined."""
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<pad>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


TOKENIZER = tiny_tokenizer()


def tiny_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.5,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def fits(tokenizer: Any, written: Sequence[int], token: int, eos: int, prefix: str = "") -> bool:
    """The definition, from the whole text: decode everything, ask of all of its code."""
    text = tokenizer.decode([*written, token], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    program = prefix + "".join(text[low:high] for low, high in extract_code(text, "python"))
    return parses(program) if token == eos else checker_for("python").viable(program)


def parses(program: str) -> bool:
    try:
        ast.parse(program)
    except SyntaxError:
        return False
    return True


def brute_force(tokenizer: Any, written: Sequence[int], logits: Tensor, eos: int, prefix: str = "") -> Tensor:
    """The masked distribution ``[V]``: every token of the vocabulary tested, the rest renormalised."""
    allowed = torch.tensor([fits(tokenizer, written, token, eos, prefix) for token in range(len(logits))])
    return torch.where(allowed, logits.double(), -torch.inf).softmax(-1)


def masked_distribution(written: list[int], logits: Tensor, prefix: str = "", **options: Any) -> Tensor:
    tokenizer, eos = options.pop("tokenizer", TOKENIZER), options.pop("eos", EOS)
    processor = SyntaxLogitsProcessor(tokenizer, "python", 0, [eos], [prefix], mask=True, **options)
    ids = torch.tensor([written], dtype=torch.long).reshape(1, -1)
    return processor(ids, logits[None])[0].double().softmax(-1)


def viable_texts(depth: int) -> list[list[int]]:
    """All token sequences of up to ``depth`` tokens, none of them the end, that stay viable."""
    found, last = [[]], [list[int]()]
    for _ in range(depth):
        last = [[*ids, t] for ids in last for t in range(1, len(PIECES)) if fits(TOKENIZER, ids, t, EOS)]
        found += last
    return found


@pytest.mark.parametrize("prefix", ["", "if x:\n "])
def test_masked_distribution_is_that_of_brute_force_in_every_state_of_two_tokens(prefix: str) -> None:
    generator, forbidden = torch.Generator().manual_seed(3), 0
    for written in viable_texts(2):
        logits = 2 * torch.randn(len(PIECES), generator=generator)
        if prefix and not checker_for("python").viable(prefix + TOKENIZER.decode(written)):
            continue
        expected = brute_force(TOKENIZER, written, logits, EOS, prefix)
        found = masked_distribution(written, logits, prefix, top_p=1.0)
        assert torch.allclose(found, expected, atol=1e-12), TOKENIZER.decode(written)
        forbidden += int((expected == 0).sum())
    assert forbidden > 400


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_distribution_is_that_of_brute_force_for_real_decoders(family: str) -> None:
    """Byte-level BPE, SentencePiece and others; also where a character is only half written."""
    tokenizer: Any = FAMILIES[family]()
    eos, generator = tokenizer.convert_tokens_to_ids("</s>"), torch.Generator().manual_seed(0)
    tested = 0
    for text, cut in (
        ("", 0),
        ("x", 0),
        ("x = 'ä", 1),
        ("# 你好你好\n", 0),
        ("# 你好你好\n你", 1),
        ("for i in range(1", 0),
    ):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        written = ids[: len(ids) - cut]
        if not checker_for("python").viable(tokenizer.decode(written, skip_special_tokens=True)):
            continue  # characters that this vocabulary does not know
        tested += 1
        logits = torch.randn(len(tokenizer), generator=generator)
        expected = brute_force(tokenizer, written, logits, eos)
        found = masked_distribution(written, logits, tokenizer=tokenizer, eos=eos, top_p=1.0, top_k=len(tokenizer))
        assert torch.allclose(found, expected, atol=1e-12), text
    assert tested >= 2


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_what_is_found_lazily_holds_its_share_of_the_masked_distribution(top_p: float, temperature: float) -> None:
    generator, shortened = torch.Generator().manual_seed(1), 0
    for written in viable_texts(1):
        logits = 3 * torch.randn(len(PIECES), generator=generator)
        expected = brute_force(TOKENIZER, written, logits / temperature, EOS)
        options: dict[str, Any] = {"mask": True, "top_p": top_p, "temperature": temperature}
        processor = SyntaxLogitsProcessor(TOKENIZER, "python", 0, [EOS], **options)
        ids = torch.tensor([written], dtype=torch.long).reshape(1, -1)
        scores = processor(ids, logits[None])[0]
        kept = scores.isfinite()
        assert torch.equal(scores[kept], logits[kept])
        assert float(expected[kept].sum()) >= max(top_p, float(expected.max())) - 1e-6
        assert not bool((kept & (expected == 0)).any())
        assert float(expected[kept].min()) >= max(expected[~kept].tolist(), default=0)  # from the likeliest down
        drawn = (scores.double() / temperature).softmax(-1)
        assert float((drawn - expected).abs().sum()) / 2 <= 1 - top_p + 1e-6
        if top_p == 0:
            assert kept.nonzero().tolist() == [[int(expected.argmax())]]
        shortened += int((expected > 0).sum() > kept.sum())
        support = processor.support(1, len(written) + 1)[0, len(written)]
        assert sorted(support[support >= 0].tolist()) == kept.nonzero().flatten().tolist()
    assert shortened > 0 or top_p > 0.9


def test_drawn_tokens_have_the_masked_frequencies() -> None:
    """An even grid of uniforms through generate(): the counts are the distribution, up to one each."""
    model, count = tiny_model(), 120
    prompt = torch.full((count, 1), 2)
    uniforms = ((torch.arange(count) + 0.5) / count).double()[:, None]
    processor = SyntaxLogitsProcessor(TOKENIZER, "python", 1, [EOS], mask=True, top_p=1.0, temperature=0.8)
    options: dict[str, Any] = {"eos_ids": [EOS], "pad_id": PAD, "temperature": 0.8, "processor": processor}
    drawn = generate(model, prompt, torch.ones_like(prompt), uniforms, **options).ids[:, 0]
    with torch.no_grad():
        logits = model(prompt[:1]).logits[0, -1] / 0.8
    expected = brute_force(TOKENIZER, [], logits, EOS)
    assert 2 < int((expected > 0).sum()) < len(PIECES) - 2
    assert float((drawn.bincount(minlength=len(PIECES)) / count - expected).abs().max()) <= 1.001 / count


def test_greedy_decoding_takes_the_likeliest_token_that_fits() -> None:
    """By the book: one row, no cache, every token of the vocabulary tested."""
    model, prompts, tasks = tiny_model(), torch.arange(2, 12)[:, None], [code_task(i) for i in range(10)]
    found, free = (
        generate(
            model, prompts, torch.ones_like(prompts), torch.zeros(10, 8), eos_ids=[EOS], pad_id=PAD, temperature=0.0,
            processor=processor,
        )
        for processor in (syntax_processor(TOKENIZER, tasks, 1, [EOS], 0.0), None)
    )  # fmt: skip
    for prompt, ids, mask in zip(prompts.tolist(), found.ids, found.mask, strict=True):
        written: list[int] = []
        while len(written) < 8 and EOS not in written:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *written]])).logits[0, -1]
            written.append(int(brute_force(TOKENIZER, written, logits, EOS).argmax()))
        assert ids[mask.bool()].tolist() == written
    assert not torch.equal(found.ids[:, :3], free.ids[:, :3])


CASES = [("python", ""), ("python", "if x:\n "), ("java", "class A { int "), (None, "")]


def test_a_random_model_never_leaves_the_grammar_and_flags_agree() -> None:
    """Rows of two languages and a free one that end at different steps, some of which leave the batch on the way."""
    model, cases = tiny_model(), CASES * 8
    prompts = torch.randint(2, len(PIECES), (len(cases), 3), generator=torch.Generator().manual_seed(0))
    uniforms, sizes = sample_uniforms([(row,) for row in range(len(cases))], 14), list[int]()
    model.register_forward_pre_hook(lambda *call: sizes.append(len(call[2]["input_ids"])), with_kwargs=True)
    broken = {}
    for mask in (False, True):
        languages, prefixes = [c[0] for c in cases], [c[1] for c in cases]
        processor = SyntaxLogitsProcessor(TOKENIZER, languages, 3, [EOS], prefixes, mask=mask, top_p=0.9)
        found = generate(
            model, prompts, torch.ones_like(prompts), uniforms, eos_ids=[EOS], pad_id=PAD, processor=processor
        )  # fmt: skip
        responses = [ids[kept.bool()].tolist() for ids, kept in zip(found.ids, found.mask, strict=True)]
        flags = processor.flags(responses)
        assert processor.stuck == 0
        assert sizes[-1] < len(cases)
        broken[mask] = sum(check_row(*row) for row in zip(cases, responses, found.finished, flags, strict=True))
        free = generate(model, prompts, torch.ones_like(prompts), uniforms, eos_ids=[EOS], pad_id=PAD)
        same = [torch.equal(free.ids[row, :14], found.ids[row, :14]) for row in range(len(cases))]
        assert all(same) if not mask else all(same[3::4]) and not all(same[0::4])
    assert broken[False] > 10
    assert broken[True] == 0


def check_row(case: tuple[str | None, str], ids: list[int], finished: Tensor, flags: list[Any]) -> bool:
    """Online flags are those found afterwards; whether the response has left the grammar."""
    language, prefix = case
    if language is None:
        assert flags == [None] * len(ids)
        return False
    text, spans = TokenOffsets(TOKENIZER).char_spans(ids)
    task = CodeTask("t", "synthesis", language, "", "", "", prefix=prefix)
    sample = Sample(task, text, extract_code(text, language), truncated=not finished)
    assert flags == SyntaxReward().flags(sample, spans)
    if finished and language == "python":
        assert (False in flags) != parses(prefix + text)
    checker = checker_for(language)
    assert (False in flags) != (checker.complete(prefix + text) if finished else checker.viable(prefix + text))
    return False in flags


class Spy:
    """A processor that changes nothing, or forces given tokens, and remembers how it was called."""

    def __init__(self, script: list[list[int]] | None = None) -> None:
        self.script, self.calls = script, list[tuple[Tensor, Tensor]]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls.append((input_ids.clone(), scores.clone()))
        if self.script is None:
            return scores
        step = len(self.calls) - 1
        forced = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(self.script):
            forced[row, tokens[step] if step < len(tokens) else PAD] = 0.0
        return forced


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_processor_sees_every_row_in_its_place(temperature: float) -> None:
    script = [[2, EOS], [3, 3, 3, 3, 3], [EOS], [4, 4, 4, EOS], [5, EOS], [6, 6, 6, 6, EOS]]
    prompts, spy = torch.arange(2, 2 + len(script))[:, None].repeat(1, 2), Spy(script)
    uniforms = torch.rand(len(script), 5)
    options: dict[str, Any] = {"eos_ids": [EOS], "pad_id": PAD, "temperature": temperature}
    found = generate(tiny_model(), prompts, torch.ones_like(prompts), uniforms, processor=spy, **options)
    assert [ids[kept.bool()].tolist() for ids, kept in zip(found.ids, found.mask, strict=True)] == script
    for step, (input_ids, scores) in enumerate(spy.calls):
        assert scores.shape == (len(script), len(PIECES))
        for row, tokens in enumerate(script):
            if step <= len(tokens) - 1:
                assert input_ids[row].tolist() == [*prompts[row].tolist(), *tokens[:step]]
    assert not spy.calls[-1][1][2].any()  # has left the batch


def test_without_a_processor_all_is_as_with_one_that_changes_nothing() -> None:
    model, prompts = tiny_model(), torch.randint(2, len(PIECES), (12, 3))
    uniforms = sample_uniforms([(row,) for row in range(12)], 10)
    options: dict[str, Any] = {"eos_ids": [EOS], "pad_id": PAD, "temperature": 0.9, "top_p": 0.95}
    plain = generate(model, prompts, torch.ones_like(prompts), uniforms, **options)
    spied = generate(model, prompts, torch.ones_like(prompts), uniforms, processor=Spy(), **options)
    for one, other in zip(plain[:3], spied[:3], strict=True):
        assert torch.equal(one, other)
    assert plain.support is None
    assert (GenerationConfig().constrain, GenerationConfig().eval_constrain) == ("none", "none")


def test_a_diverged_model_is_refused_before_its_logits_are_masked() -> None:
    model, prompts = tiny_model(), torch.full((2, 2), 3)
    nn.init.constant_(model.lm_head.weight, torch.nan)
    processor = SyntaxLogitsProcessor(TOKENIZER, "python", 2, [EOS], mask=True)
    with pytest.raises(FloatingPointError, match="diverged"):
        generate(
            model, prompts, torch.ones_like(prompts), torch.rand(2, 3), eos_ids=[EOS], pad_id=PAD, processor=processor
        )


@pytest.mark.parametrize("chunk", [2, 100])
def test_logprobs_over_a_support(chunk: int) -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(4, 7), torch.randn(3, 4, requires_grad=True)
    support = torch.tensor([[2, 5, -1], [-1, -1, -1], [6, 0, 3]])
    labels, masked = torch.tensor([5, 1, 0]), torch.full((3, 7), -1e30)
    for row, tokens in enumerate([[2, 5], range(7), [6, 0, 3]]):
        masked[row, list(tokens)] = 0.0
    table = (head(hidden) / 0.7 + masked).log_softmax(-1)
    found, entropy = token_logprobs(head, hidden, labels, 0.7, chunk, True, support)
    assert torch.allclose(found, table[range(3), labels], atol=1e-6)
    assert torch.allclose(entropy, -(table.exp() * table).nan_to_num().sum(-1), atol=1e-6)
    gradients = [torch.autograd.grad((x + 0.3 * y).sum(), hidden)[0] for x, y in (
        (found, entropy), (table[range(3), labels], -(table.exp() * table).sum(-1))
    )]  # fmt: skip
    assert torch.allclose(*gradients, atol=1e-5)


# --- PPO -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random actor with the sixteen tokens."""
    folder = tmp_path_factory.mktemp("actor")
    tiny_model(1).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def code_task(index: int, language: str = "python", prefix: str = "") -> CodeTask:
    return CodeTask(f"t/{index}", "synthesis", language, "x" if index % 2 else "y", "d", "x", prefix=prefix)


class CodeData(CodeDataModule):
    """Eight Python tasks, every fourth of prose instead."""

    def train_tasks(self) -> Sequence[CodeTask]:
        return [code_task(i, "text" if i % 4 == 3 else "python") for i in range(8)]

    validation_tasks = test_tasks = train_tasks


def module_of(actor: Path, **generation: Any) -> PPOModule:
    settings = {"max_prompt_length": 8, "max_new_tokens": 12, "samples_per_prompt": 2, "temperature": 0.7, **generation}
    return PPOModule(
        ActorConfig(path=str(actor)),
        CriticConfig(kind="shared"),
        generation=GenerationConfig(**settings),
        ppo=PPOConfig(epochs=1, minibatches=1, micro_batch_size=3),
        kl=KLConfig(coef=0.1),
        seed=0,
    )


def first_rollout(actor: Path, folder: Path, **generation: Any) -> Rollout:
    record = Record()
    trainer = tiny_trainer(folder, [ScoreOf("length", lambda text: min(len(text) / 9, 1.0))], 1, callbacks=[record])
    trainer.fit(module_of(actor, **generation), datamodule=CodeData(batch_size=8))
    return record.rollouts[0]


def test_ratio_is_one_before_the_first_update(actor: Path, tmp_path: Path) -> None:
    rollout = first_rollout(actor, tmp_path, constrain="syntax")
    assert rollout.metrics["ppo/approx_kl"] == pytest.approx(0, abs=1e-8)
    assert rollout.metrics["ppo/clip_fraction"] == 0
    assert rollout.metrics["kl/sequence"] == pytest.approx(0, abs=1e-4)  # the reference is still the actor
    assert rollout.support is not None
    for sample, finished, support in zip(rollout.samples, rollout.finished, rollout.support, strict=True):
        if sample.task.language == "text":
            assert bool((support == -1).all())
        else:
            assert bool((support >= 0).any())
            assert parses(sample.text) if finished else checker_for("python").viable(sample.text)
    assert sum(bool(f) and s.task.language == "python" for s, f in zip(rollout.samples, rollout.finished, strict=True))
    free = first_rollout(actor, tmp_path)
    assert free.support is None
    assert not all(parses(s.text) or not f for s, f in zip(free.samples, free.finished, strict=True))


class Recorded:
    """The distributions that tokens were drawn from, ``[B, V]`` a step."""

    def __init__(self, processor: SyntaxLogitsProcessor) -> None:
        self.processor, self.logits = processor, list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logits.append(self.processor(input_ids, scores))
        return self.logits[-1]


def test_scored_logprobs_are_those_of_the_distribution_sampled_from(actor: Path) -> None:
    """Actor and reference; and without the support they are others."""
    policy = ActorCritic(ActorConfig(path=str(actor)), CriticConfig(kind="shared"))
    tasks = [code_task(i, "text" if i == 3 else "python") for i in range(10)]
    prompts = torch.full((10, 2), 2)
    recorded = Recorded(syntax_processor(TOKENIZER, tasks, 2, [EOS], 0.7))
    uniforms, mask = sample_uniforms([(row,) for row in range(10)], 9), torch.ones_like(prompts)
    options: dict[str, Any] = {"eos_ids": [EOS], "pad_id": PAD, "temperature": 0.7, "processor": recorded}
    found: Responses = policy.generate(prompts, mask, uniforms, **options)
    support = recorded.processor.support(*found.ids.shape)
    tables = (torch.stack(recorded.logits, 1) / 0.7).log_softmax(-1)[:, : found.ids.shape[1]]
    sampled = tables.gather(-1, found.ids.unsqueeze(-1)).squeeze(-1) * found.mask
    given = (prompts, mask, found.ids, found.mask)
    scores: list[Scores] = [
        policy(*given, actor=True, reference=True, temperature=0.7, support=s) for s in (support, None)
    ]
    assert scores[0].logprobs is not None
    assert scores[0].ref_logprobs is not None
    assert scores[1].logprobs is not None
    assert torch.allclose(scores[0].logprobs, sampled, atol=1e-4)
    assert torch.allclose(scores[0].ref_logprobs, sampled, atol=1e-4)
    assert float((scores[1].logprobs - sampled).detach().abs().max()) > 0.5
    assert torch.allclose(scores[1].logprobs[3], sampled[3], atol=1e-4)  # prose is not constrained


def test_predictions_are_constrained_where_that_is_asked_for(actor: Path, tmp_path: Path) -> None:
    def texts(constrain: Any) -> list[str]:
        module = module_of(actor, eval_constrain=constrain, eval_temperature=1.0)
        tiny_trainer(tmp_path, [ScoreOf("none", lambda text: 0.0)], 1).predict(module, datamodule=CodeData())
        lines = next(tmp_path.rglob("completions.jsonl")).read_text().splitlines()
        return [json.loads(line)["completion"] for i, line in enumerate(lines) if i % 4 != 3]

    assert all(checker_for("python").viable(text) for text in texts("syntax"))
    assert not all(checker_for("python").viable(text) for text in texts("none"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (code_task(1, "go"), "task t/1: no grammar of go to constrain generation by"),
        (code_task(2, prefix="def f(x:: \n"), "task t/2: no python program starts with the task's prefix"),
    ],
)
def test_what_cannot_work_is_refused_by_name(task: CodeTask, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        syntax_processor(TOKENIZER, [code_task(0), task], 1, [EOS], 1.0)
    assert "\n" not in str(error.value)
    syntax_processor(TOKENIZER, [replace(task, language="text")], 1, [EOS], 1.0)


def test_settings_out_of_range() -> None:
    for name in ("constrain", "eval_constrain"):
        with pytest.raises(ValueError, match=rf"generation.{name} must be none or syntax, got 'yes'"):
            GenerationConfig(**{name: "yes"})
    for options in ({"top_p": 1.5}, {"top_p": -0.1}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="top_p must lie in"):
            SyntaxLogitsProcessor(TOKENIZER, "python", 0, [EOS], **options)
