"""Loading: the attention backend, remedies that fit their causes, and a pad token that is the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

from lightning_dterm.init_actor import train_tokenizer
from lightning_dterm.modules.loading import ActorConfig, ActorLoadError, load_causal_lm, with_pad_token
from tests.tiny import tiny_actor

SIZES: dict[str, Any] = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "rotary_dim": 4}


@pytest.fixture(scope="module")
def gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a family that knows no scaled dot product attention."""
    folder = tmp_path_factory.mktemp("gptj")
    GPTJForCausalLM(GPTJConfig(**SIZES, bos_token_id=None, eos_token_id=0)).save_pretrained(folder)
    return folder


def test_transformers_chooses_the_attention(gptj: Path, tmp_path: Path) -> None:
    assert load_causal_lm(ActorConfig(str(gptj))).config._attn_implementation == "eager"
    assert load_causal_lm(ActorConfig(str(tiny_actor(tmp_path)))).config._attn_implementation == "sdpa"


def test_a_backend_that_the_model_lacks_is_named_with_its_own_remedy(gptj: Path) -> None:
    with pytest.raises(ActorLoadError, match=r"GPTJ.* Leave actor\.attn_implementation out") as refusal:
        load_causal_lm(ActorConfig(str(gptj), attn_implementation="sdpa"))
    assert "actor.path" not in str(refusal.value)


def test_no_such_folder_speaks_of_the_path(tmp_path: Path) -> None:
    with pytest.raises(ActorLoadError, match=r"Give actor\.path a local folder"):
        load_causal_lm(ActorConfig(str(tmp_path / "nothing")))


def test_an_unknown_architecture_speaks_of_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ActorLoadError, match=r"nonesuch.* Give actor\.path a causal language model of an architecture"):
        load_causal_lm(ActorConfig(str(tmp_path)))


def test_the_substitute_for_a_pad_token_is_the_smallest_id(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = train_tokenizer(["def f(x):\n    return x\n"], 280).backend_tokenizer
    chosen = []
    for reverse in (False, True):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")
        vocabulary = sorted(tokenizer.get_vocab().items(), reverse=reverse)
        monkeypatch.setattr(tokenizer, "get_vocab", lambda v=vocabulary: dict(v))
        monkeypatch.setattr(tokenizer, "get_added_vocab", dict)
        chosen.append(with_pad_token(tokenizer).pad_token_id)
    assert tokenizer.eos_token_id == 0
    assert chosen == [1, 1]
