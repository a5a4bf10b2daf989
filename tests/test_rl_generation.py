"""The decode loop on tiny random models against transformers' own and against one un-padded row without a cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lightning_dterm.rl.generation import Responses, generate, sample_uniforms

VOCABULARY, PAD, LIMIT = 50, 0, 12
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.35,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE: dict[str, Any] = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(5)
    if name == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**ROPE)).float().eval()
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**ROPE)).float().eval()
    return GPT2LMHeadModel(GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64)).float().eval()


@pytest.fixture(scope="module", params=["qwen2", "llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture(scope="module")
def qwen2() -> nn.Module:
    return build("qwen2")


def some_prompts(count: int, seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=g).tolist()
    return [torch.randint(1, VOCABULARY, (n,), generator=g).tolist() for n in lengths]


def left_pad(prompts: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts)) + extra
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@torch.no_grad()
def by_the_book(
    model: nn.Module, prompt: list[int], uniforms: list[float], eos: list[int], temperature: float, top_p: float
) -> list[int]:
    """One un-padded row, the whole sequence again for every token, the inverse CDF in plain Python."""
    sequence, response = list(prompt), []
    for u in uniforms:
        logits = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, -1].double().tolist()
        if temperature == 0:
            token = max(range(len(logits)), key=lambda i: logits[i])
        else:
            weights = [math.exp((x - max(logits)) / temperature) for x in logits]
            kept, mass = set(), 0.0
            for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
                if mass >= top_p * sum(weights):
                    break
                kept.add(i)
                mass += weights[i]
            running, token = 0.0, -1
            for i in sorted(kept):
                running += weights[i]
                token = i
                if running > u * mass:
                    break
        response.append(token)
        sequence.append(token)
        if token in eos:
            break
    return response


def trimmed(responses: Responses) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(responses.ids, responses.mask, strict=True)]


def run(
    model: nn.Module, prompts: list[list[int]], uniforms: Tensor, eos: list[int], extra: int = 0, **options: float
) -> Responses:
    ids, mask = left_pad(prompts, extra)
    return generate(model, ids, mask, uniforms, eos_ids=eos, pad_id=PAD, **options)


def widths_seen(model: nn.Module, sizes: list[int]) -> Any:
    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(kwargs["input_ids"].shape[0])

    return model.register_forward_pre_hook(note, with_kwargs=True)


def spread_out_ends(responses: list[list[int]]) -> list[int]:
    """Two tokens that end about half of the rows, at different steps."""

    def first(row: list[int], pair: tuple[int, int]) -> int | None:
        return next((t for t, token in enumerate(row) if token in pair), None)

    def merit(pair: tuple[int, int]) -> tuple[bool, int]:
        stops = [first(row, pair) for row in responses]
        ended = [s for s in stops if s is not None]
        return 0.4 <= len(ended) / len(stops) <= 0.85, len(set(ended))

    return list(max(((a, b) for a in range(1, VOCABULARY) for b in range(a)), key=merit))


@pytest.fixture(scope="module")
def greedy_case(model: nn.Module) -> tuple[list[list[int]], list[int]]:
    prompts = some_prompts(16)
    free = [by_the_book(model, p, [0.0] * LIMIT, [], 0.0, 1.0) for p in prompts]
    return prompts, spread_out_ends(free)


def test_greedy_equals_transformers(model: nn.Module, greedy_case: tuple[list[list[int]], list[int]]) -> None:
    prompts, eos = greedy_case
    ids, mask = left_pad(prompts)
    sizes: list[int] = []
    hook = widths_seen(model, sizes)
    ours = generate(model, ids, mask, torch.zeros(16, LIMIT), eos_ids=eos, pad_id=PAD, temperature=0.0)
    hook.remove()
    theirs = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=LIMIT, eos_token_id=eos, pad_token_id=PAD
    )[:, ids.shape[1] :]
    assert torch.equal(ours.ids, theirs)
    lengths = ours.mask.sum(-1)
    assert len(set(lengths.tolist())) >= 3, "the case must mix lengths"
    assert min(sizes) <= 0.75 * 16, "the case must drop rows"
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < int(ours.finished.sum()) < 16
    for row, length, finished in zip(theirs.tolist(), lengths.tolist(), ours.finished.tolist(), strict=True):
        stop = next((t for t, token in enumerate(row) if token in eos), None)
        assert finished == (stop is not None)
        assert length == (LIMIT if stop is None else stop + 1)


def test_greedy_without_an_end_runs_to_the_limit(model: nn.Module) -> None:
    prompts = some_prompts(5, seed=2)
    ours = run(model, prompts, torch.zeros(5, LIMIT), [], temperature=0.0)
    assert trimmed(ours) == [by_the_book(model, p, [0.0] * LIMIT, [], 0.0, 1.0) for p in prompts]
    assert ours.mask.all()
    assert not ours.finished.any()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_sampling_equals_the_book_row_by_row(model: nn.Module, temperature: float, top_p: float) -> None:
    prompts, uniforms = some_prompts(12, seed=1), sample_uniforms([("book", b) for b in range(12)], LIMIT)

    def book(eos: list[int]) -> list[list[int]]:
        pairs = zip(prompts, uniforms.tolist(), strict=True)
        return [by_the_book(model, p, u, eos, temperature, top_p) for p, u in pairs]

    eos = spread_out_ends(book([]))
    expected = book(eos)
    ours = run(model, prompts, uniforms, eos, temperature=temperature, top_p=top_p)
    assert trimmed(ours) == expected
    assert ours.finished.tolist() == [row[-1] in eos for row in expected]
    assert len({len(row) for row in expected}) >= 3


def test_a_response_belongs_to_its_sample(model: nn.Module) -> None:
    """Alone, in another order, on another "rank", or next to other prompts and wider padding: the same tokens."""
    prompts, eos = some_prompts(12, seed=3), list(range(1, 9))
    keys = [("sample", b) for b in range(12)]
    uniforms = sample_uniforms(keys, LIMIT)
    together = trimmed(run(model, prompts, uniforms, eos))
    assert len({tuple(r) for r in together}) >= 10

    for b in (0, 5, 11):
        assert trimmed(run(model, [prompts[b]], sample_uniforms([keys[b]], LIMIT), eos)) == [together[b]]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = run(model, [prompts[b] for b in order], uniforms[order], eos)
    assert trimmed(shuffled) == [together[b] for b in order]
    halves = [run(model, prompts[s], uniforms[s], eos) for s in (slice(0, 5), slice(5, 12))]
    assert trimmed(halves[0]) + trimmed(halves[1]) == together
    others = some_prompts(6, seed=9)
    mixed = run(
        model, others + prompts[:4], torch.cat([sample_uniforms([("x", i) for i in range(6)], LIMIT), uniforms[:4]]),
        eos, extra=5,
    )  # fmt: skip
    assert trimmed(mixed)[6:] == together[:4]


def test_a_shorter_limit_is_a_prefix(qwen2: nn.Module) -> None:
    prompts, uniforms = some_prompts(6), sample_uniforms([(b,) for b in range(6)], LIMIT)
    long = trimmed(run(qwen2, prompts, uniforms, [3, 4]))
    short = run(qwen2, prompts, uniforms[:, :5], [3, 4])
    assert trimmed(short) == [row[:5] for row in long]


def test_generation_neither_uses_nor_moves_global_randomness(qwen2: nn.Module) -> None:
    prompts, uniforms = some_prompts(4), sample_uniforms([(b,) for b in range(4)], LIMIT)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(qwen2, prompts, uniforms, [3])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(run(qwen2, prompts, uniforms, [3]).ids, first.ids)


def test_first_and_second_tokens_follow_the_softmax(qwen2: nn.Module) -> None:
    n, temperature, prompt = 3000, 1.5, [7, 21, 4]
    uniforms = sample_uniforms([("frequency", i) for i in range(n)], 2)
    responses = run(qwen2, [prompt] * n, uniforms, [], temperature=temperature).ids

    def check(tokens: Tensor, context: list[int]) -> None:
        with torch.no_grad():
            logits = qwen2(input_ids=torch.tensor([context])).logits[0, -1]
        expected = len(tokens) * (logits.double() / temperature).softmax(-1)
        counts = torch.bincount(tokens, minlength=VOCABULARY).double()
        rare = expected < 5
        cells = (
            torch.cat([counts[~rare], counts[rare].sum()[None]]),
            torch.cat([expected[~rare], expected[rare].sum()[None]]),
        )
        freedom = len(cells[0]) - 1
        assert freedom >= 2
        chi_square = float(((cells[0] - cells[1]).square() / cells[1].clamp(min=1e-9)).sum())
        # Wilson and Hilferty's cube-root normal, 4 standard deviations
        bound = freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3
        assert chi_square < bound

    check(responses[:, 0], prompt)
    usual = int(responses[:, 0].mode().values)
    check(responses[responses[:, 0] == usual, 1], [*prompt, usual])


def test_logprobs_of_sampled_tokens_do_not_depend_on_padding(model: nn.Module) -> None:
    """A full left-padded batch forward scores what one un-padded row at a time does."""
    prompts = some_prompts(8, seed=4)
    responses = run(model, prompts, sample_uniforms([(b,) for b in range(8)], LIMIT), [3, 4, 5])
    prompt_ids, prompt_mask = left_pad(prompts)
    ids, mask = torch.cat([prompt_ids, responses.ids], 1), torch.cat([prompt_mask, responses.mask], 1)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits
        batch = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)[:, prompt_ids.shape[1] - 1 :]
        for b, (prompt, response) in enumerate(zip(prompts, trimmed(responses), strict=True)):
            alone = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].log_softmax(-1)
            for t, token in enumerate(response):
                assert float(batch[b, t]) == pytest.approx(float(alone[len(prompt) - 1 + t, token]), abs=1e-4)


class Script(nn.Module):
    """A "model" that forces a given response for each row, told apart by the row's first prompt token."""

    def __init__(self, script: dict[int, list[int]]) -> None:
        super().__init__()
        self.script = script
        self.sizes: list[int] = []
        self.running: list[int] = []
        self.step = 0
        self.inner = build("qwen2")

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        output = self.inner(input_ids=input_ids, **kwargs)
        self.sizes.append(len(input_ids))
        if self.step == 0:
            self.running = input_ids[:, -1].tolist()
        elif len(input_ids) < len(self.running):
            # the rows left are those whose script has not ended yet
            self.running = [r for r in self.running if len(self.script[r]) > self.step]
            assert len(self.running) == len(input_ids)
        logits = torch.full_like(output.logits, -1e4)
        for row, name in enumerate(self.running):
            wanted = self.script[name]
            logits[row, -1, wanted[self.step] if self.step < len(wanted) else 49] = 1e4
        self.step += 1
        output.logits = logits
        return output


def test_mask_and_finished_by_hand() -> None:
    """EOS 2 or 3 belongs to the response; what a row produces after its end is thrown away; truncated is unfinished."""
    script = {
        10: [5, 2],
        11: [6, 6, 6, 6, 6],
        12: [7, 7, 7, 3],
        13: [2],
        14: [8, 8, 8, 8, 2],  # ends exactly at the limit
    }
    model = Script(script)
    ours = run(model, [[9, name] for name in script], torch.rand(5, 5), [2, 3])
    assert ours.ids.tolist() == [
        [5, 2, PAD, PAD, PAD],
        [6, 6, 6, 6, 6],
        [7, 7, 7, 3, PAD],
        [2, PAD, PAD, PAD, PAD],
        [8, 8, 8, 8, 2],
    ]
    assert ours.mask.tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1] * 5]
    assert ours.finished.tolist() == [True, False, True, True, True]
    assert model.sizes[0] == 5
    assert model.sizes[-1] < 5


def test_it_stops_when_every_row_has_ended() -> None:
    model = Script({10: [5, 2], 11: [2]})
    ours = run(model, [[10], [11]], torch.rand(2, 40), [2])
    assert model.step == 2
    assert ours.ids.tolist() == [[5, 2], [2, PAD]]
    assert ours.finished.all()


def test_a_pad_token_that_is_an_end_token_is_still_told_from_padding() -> None:
    ids, mask = left_pad([[10], [11]])
    ours = generate(Script({10: [5, 2], 11: [6, 6, 6]}), ids, mask, torch.rand(2, 3), eos_ids=[2], pad_id=2)
    assert ours.ids.tolist() == [[5, 2, 2], [6, 6, 6]]
    assert ours.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert ours.finished.tolist() == [True, False]


def test_a_sampled_pad_token_is_a_token() -> None:
    ours = run(Script({10: [5, PAD, 6]}), [[10]], torch.rand(1, 3), [2])
    assert ours.ids.tolist() == [[5, PAD, 6]]
    assert ours.mask.tolist() == [[1, 1, 1]]


def test_nothing_to_do(qwen2: nn.Module) -> None:
    none = run(qwen2, [[4, 5], [6]], torch.zeros(2, 0), [3])
    assert none.ids.shape == none.mask.shape == (2, 0)
    assert none.finished.tolist() == [False, False]
    empty = torch.zeros(0, 4, dtype=torch.long)
    nobody = generate(qwen2, empty, empty, torch.zeros(0, 6), eos_ids=[3], pad_id=PAD)
    assert nobody.ids.shape[0] == nobody.mask.shape[0] == 0
    assert nobody.finished.shape == (0,)


def test_no_gradients_and_arguments_left_alone(qwen2: nn.Module) -> None:
    ids, mask = left_pad(some_prompts(4))
    uniforms = sample_uniforms([(b,) for b in range(4)], 4)
    copies = ids.clone(), mask.clone(), uniforms.clone()
    ours = generate(qwen2, ids, mask.bool(), uniforms, eos_ids=[3, 4], pad_id=PAD)
    assert all(torch.equal(a, b) for a, b in zip((ids, mask, uniforms), copies, strict=True))
    assert torch.equal(ours.ids, generate(qwen2, ids, mask, uniforms, eos_ids=[3, 4], pad_id=PAD).ids)
    assert all(p.grad is None for p in qwen2.parameters())


@pytest.mark.parametrize("prompt_mask", [[[1, 1, 0], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]], ids=["right-padded", "empty"])
def test_prompts_that_cannot_be_continued_are_refused(qwen2: nn.Module, prompt_mask: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"(?i)prompt"):
        generate(
            qwen2, torch.full((2, 3), 7), torch.tensor(prompt_mask), torch.rand(2, 3), eos_ids=[3], pad_id=PAD
        )  # fmt: skip
