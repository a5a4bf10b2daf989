"""Tiny real parts that tests build for themselves: actors on disk, tasks, rewards, trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lightning_dterm.callbacks import RewardComputation, TokenAttribution
from lightning_dterm.data.base import CodeDataModule
from lightning_dterm.init_actor import train_tokenizer
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.rewards import RewardComponent
from lightning_dterm.types import CodeTask, RewardResult, Sample


def tiny_actor(folder: Path, seed: int = 0, vocab_size: int = 300, hidden: int = 32, layers: int = 2) -> Path:
    """A random Qwen2 with a byte-level tokenizer, saved the way users' models are."""
    tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n", "print('abc')\n"], vocab_size)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_text_encoder(folder: Path, seed: int = 0, add_pooling_layer: bool = True) -> Path:
    """A random BERT of width 16 and 32 positions that knows the words "fix", "the" and "bug"."""
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fix", "the", "bug"])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=7, max_position_embeddings=32, **sizes)
    BertModel(config, add_pooling_layer=add_pooling_layer).save_pretrained(folder)
    return folder


def text_task(index: int, prompt: str = "ab", task_type: str = "synthesis") -> CodeTask:
    """A task without tests, whose completion is prose to every component but the test's own."""
    return CodeTask(f"t/{index}", task_type, "text", f"{prompt}{index % 7}", f"{task_type} number {index % 5}", "abc")


class TextData(CodeDataModule):
    """``size`` text tasks for training, 8 for validation and test."""

    def __init__(self, size: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def train_tasks(self) -> Sequence[CodeTask]:
        return [text_task(i, task_type=("synthesis", "repair")[i % 2]) for i in range(self.size)]

    def validation_tasks(self) -> Sequence[CodeTask]:
        return [text_task(i) for i in range(8)]

    test_tasks = validation_tasks


class ScoreOf(RewardComponent):
    """A component from a plain function of the text."""

    def __init__(self, name: str, function: Any) -> None:
        self.name = name
        self.function = function

    def applies_to(self, task: CodeTask) -> bool:
        return True

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        return [RewardResult(float(self.function(sample.text))) for sample in samples]


def share_of_a(text: str) -> float:
    """Share of the letter a, 0 for an empty text."""
    return text.count("a") / len(text) if text else 0.0


def tiny_trainer(root: Path, components: Sequence[RewardComponent], max_steps: int, **kwargs: Any) -> L.Trainer:
    """A quiet CPU trainer with the reward and attribution callbacks."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": max_steps,
        "max_epochs": -1,
        "default_root_dir": root,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "limit_val_batches": 0,
    }
    callbacks = [
        RewardComputation(components=list(components)),
        TokenAttribution(mode="uniform"),
        *kwargs.pop("callbacks", []),
    ]
    return L.Trainer(callbacks=callbacks, **{**settings, **kwargs})


def tiny_ppo(actor: Path, **settings: Any) -> PPOModule:
    """PPO of a :func:`tiny_actor`, by default with a critic on its trunk."""
    return PPOModule(**{"actor": ActorConfig(path=str(actor)), "critic": CriticConfig(kind="shared"), **settings})


def tiny_fit(
    root: Path,
    module: L.LightningModule,
    components: Sequence[RewardComponent],
    max_steps: int,
    data: CodeDataModule,
    resume: Path | None = None,
    **kwargs: Any,
) -> L.Trainer:
    """Train with a :func:`tiny_trainer`; ``kwargs`` are its."""
    trainer = tiny_trainer(root, components, max_steps, **kwargs)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer
