"""Chunked log-probabilities and entropies against the full log-softmax; the memory claim against saved tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical

from lightning_dterm.rl.logprobs import token_logprobs


def setup(n: int, vocab: int = 11, width: int = 5, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(seed)
    head = nn.Linear(width, vocab)
    return head, torch.randn(n, width, requires_grad=True), torch.randint(0, vocab, (n,))


def oracle(head: nn.Linear, hidden: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = (hidden @ head.weight.T + head.bias) / temperature
    table = torch.log_softmax(logits, -1)
    return torch.stack([table[i, int(label)] for i, label in enumerate(labels)]), Categorical(logits=logits).entropy()


def gradients(loss: Tensor, head: nn.Linear, hidden: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden, head.weight, head.bias]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 17),
    st.one_of(st.sampled_from([1, 4096]), st.integers(1, 20)),
    st.floats(0.2, 3.0),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_values_and_gradients_for_any_chunk_size(
    n: int, chunk: int, temperature: float, entropy_gradient: bool, seed: int
) -> None:
    head, hidden, labels = setup(n, seed=seed)
    weights, entropy_weights = torch.randn(n), torch.randn(n)
    logprobs, entropy = token_logprobs(head, hidden, labels, temperature, chunk, entropy_gradient)
    expected, expected_entropy = oracle(head, hidden, labels, temperature)
    assert logprobs.shape == entropy.shape == (n,)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert torch.allclose(logprobs, expected, atol=2e-5)
    assert torch.allclose(entropy, expected_entropy, atol=2e-5)
    loss, expected_loss = (logprobs * weights).sum(), (expected * weights).sum()
    if entropy_gradient:
        loss = loss + (entropy * entropy_weights).sum()
        expected_loss = expected_loss + (expected_entropy * entropy_weights).sum()
    for got, want in zip(gradients(loss, head, hidden), gradients(expected_loss, head, hidden), strict=True):
        assert torch.allclose(got, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_entropy_has_a_gradient_only_on_request(chunk: int) -> None:
    head, hidden, labels = setup(7)
    logprobs, entropy = token_logprobs(head, hidden, labels, chunk_tokens=chunk)
    assert logprobs.requires_grad
    assert not entropy.requires_grad
    _, entropy = token_logprobs(head, hidden, labels, chunk_tokens=chunk, entropy_gradient=True)
    assert entropy.requires_grad
    assert float(gradients(entropy.sum(), head, hidden)[0].abs().max()) > 1e-3


@pytest.mark.parametrize("chunk", [2, 100])
def test_nothing_is_tracked_without_autograd(chunk: int) -> None:
    head, hidden, labels = setup(7)
    with torch.no_grad():
        logprobs, entropy = token_logprobs(head, hidden, labels, 1.0, chunk, True)
    assert not logprobs.requires_grad
    assert not entropy.requires_grad
    assert torch.allclose(logprobs, oracle(head, hidden, labels, 1.0)[0], atol=1e-5)


def test_gradient_reaches_the_head_when_the_hidden_states_are_constants() -> None:
    head, hidden, labels = setup(7)
    logprobs, _ = token_logprobs(head, hidden.detach(), labels, chunk_tokens=2)
    expected, _ = oracle(head, hidden.detach(), labels, 1.0)
    (got,) = torch.autograd.grad(logprobs.sum(), head.weight)
    (want,) = torch.autograd.grad(expected.sum(), head.weight)
    assert torch.allclose(got, want, atol=1e-5)


def test_no_tokens() -> None:
    head, hidden, labels = setup(0)
    logprobs, entropy = token_logprobs(head, hidden, labels)
    assert logprobs.shape == entropy.shape == (0,)
    assert logprobs.dtype == entropy.dtype == torch.float32
    logprobs.sum().backward()  # a rank whose micro-batch is empty still takes part in the backward pass
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 5)


def test_no_tokens_still_give_the_head_a_gradient() -> None:
    # otherwise DDP waits for the head's gradient on the rank whose micro-batch is empty
    head, hidden, labels = setup(0)
    token_logprobs(head, hidden, labels)[0].sum().backward()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("chunk", [1, 8])
def test_autograd_keeps_no_logits(chunk: int, entropy_gradient: bool) -> None:
    """Largest tensor saved for backward: hidden states and head, never N x V (nor one chunk's logits)."""
    n, vocab, width = 64, 500, 4
    head, hidden, labels = setup(n, vocab, width)
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logprobs, entropy = token_logprobs(head, hidden, labels, 1.0, chunk, entropy_gradient)
    parameters = {head.weight.numel(), vocab}
    assert max([s for s in saved if s not in parameters], default=0) <= n * width
    assert sum(s for s in saved if s not in parameters) < n * vocab / 4

    # recomputing in the backward pass, too, only ever sees one chunk
    sizes: list[int] = []
    hook = head.register_forward_hook(lambda module, args, out: sizes.append(out.shape[0]))
    (logprobs.sum() + entropy.sum()).backward()
    hook.remove()
    assert sizes
    assert max(sizes) <= chunk
    assert sum(sizes) == n


def test_this_memory_test_would_notice_full_logits() -> None:
    head, hidden, labels = setup(64, 500, 4)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        oracle(head, hidden, labels, 1.0)
    assert max(saved) >= 64 * 500


def test_half_precision_logits_are_scored_in_float32() -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 1000, bias=False).bfloat16()
    hidden, labels = torch.randn(6, 8).bfloat16(), torch.randint(0, 1000, (6,))
    logprobs, entropy = token_logprobs(head, hidden, labels, 0.7, 4)
    table = Categorical(logits=head(hidden).double() / 0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert torch.allclose(logprobs.double(), table.log_prob(labels), atol=1e-5)
    assert torch.allclose(entropy.double(), table.entropy(), atol=1e-5)


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    logprobs, entropy = token_logprobs(lambda h: logits.expand(h.shape[0], 3), torch.zeros(2, 1), torch.tensor([0, 2]))
    assert logprobs.tolist() == [0.0, -2e4]
    assert entropy.tolist() == [0.0, 0.0]


def test_entropy_of_a_vocabulary_with_forbidden_tokens() -> None:
    # 0 log 0 = 0: a forbidden token (logit -inf) adds nothing to the entropy
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    _, entropy = token_logprobs(lambda h: logits.expand(h.shape[0], 3), torch.zeros(1, 1), torch.tensor([0]))
    assert float(entropy[0]) == pytest.approx(0.6931472, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    head, hidden, labels = setup(3)
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(head, hidden, labels, temperature)


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunk_size_must_be_positive(chunk: int) -> None:
    head, hidden, labels = setup(3)
    with pytest.raises(ValueError, match="chunk_tokens"):
        token_logprobs(head, hidden, labels, chunk_tokens=chunk)
