"""``python -m lightning_dterm.dterm.explain`` on real tiny runs, against the module in memory."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_dterm.dterm import HashingEncoder, HypernetworkWeighting, UniformWeighting
from lightning_dterm.dterm.explain import main
from lightning_dterm.modules.config import GenerationConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.rewards import RewardSuite
from lightning_dterm.types import CodeTask
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_ppo, tiny_trainer

SENTENCE = "fix the crash when the list is empty"


class ForRepair(ScoreOf):
    """Applies to repairs only."""

    def applies_to(self, task: CodeTask) -> bool:
        return task.task_type == "repair"


def config(film: str = "monotone", **changes: Any) -> dict[str, Any]:
    weighting = {
        "class_path": "lightning_dterm.dterm.HypernetworkWeighting",
        "init_args": {"film": film, "prototypes": 4},
    }
    arguments = {"weighting": weighting, "task_encoder": None, **changes}
    data = {"class_path": "tests.tiny.TextData", "init_args": {"size": 64, "batch_size": 4}}
    return {"model": {"class_path": "lightning_dterm.modules.ppo.PPOModule", "init_args": arguments}, "data": data}


def train(folder: Path, weighting: Any) -> PPOModule:
    """Two rollouts whose weights move; leaves ``run/checkpoints/last.ckpt`` and ``run/config.yaml``."""
    module = tiny_ppo(
        tiny_actor(folder / "actor"),
        generation=GenerationConfig(max_prompt_length=8, max_new_tokens=4, samples_per_prompt=2),
        ppo=PPOConfig(epochs=1, minibatches=1),
        optimizer=OptimizerConfig(weighting_lr=3e-2),
        weighting=weighting,
    )
    components = [ScoreOf("share", share_of_a), ScoreOf("long", lambda text: 0.5), ForRepair("repairs", len)]
    components[2].function = lambda text: float(len(text) % 2)
    trainer = tiny_trainer(folder, components, 2)
    score = RewardSuite.score
    with pytest.MonkeyPatch.context() as patch:  # a random actor never succeeds: let an even length be success

        def scored(self: RewardSuite, samples: Any, *args: Any) -> Any:
            outcome = torch.tensor([float(len(sample.text) % 2 == 0) for sample in samples])
            return replace(score(self, samples, *args), outcome=outcome)

        patch.setattr(RewardSuite, "score", scored)
        trainer.callbacks[0].overlap = False
        trainer.fit(module, datamodule=TextData(batch_size=4))
    with torch.no_grad():  # two rollouts of a random actor teach little: make it a hypernetwork that has learned
        draw = torch.Generator().manual_seed(1)
        for parameter in module.weighting.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    (folder / "run" / "checkpoints").mkdir(parents=True)
    trainer.save_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config()))
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PPOModule]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("explain")
    module = train(folder, HypernetworkWeighting(film="monotone", prototypes=4))
    return folder / "run" / "checkpoints" / "last.ckpt", module


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[list[str]]]:
    """Rows by the title of their table."""
    main(list(arguments))
    tables: dict[str, list[list[str]]] = {"": []}
    title = ""
    for line in capsys.readouterr().out.splitlines():
        if "│" in line:
            tables[title].append([cell.strip() for cell in line.strip("│ ").split("│")])
        elif line.strip() and not re.match(r"[┏┡└┃]", line.strip()):
            title = line.strip()
            tables.setdefault(title, [])
    return tables


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(list(arguments))
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("lightning-dterm: error: ")
    assert error.count("\n") == 1
    return error


def test_it_prints_what_the_trained_module_computes(
    run: tuple[Path, PPOModule], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path, module = run
    tables = printed(capsys, "--ckpt", str(path), "--description", SENTENCE, "--top", "3")
    embedding = HashingEncoder().encode([SENTENCE])
    network = module.weighting.hypernetwork
    assert isinstance(module.weighting, HypernetworkWeighting)
    assert network is not None
    with torch.no_grad():
        weights = module.weighting(embedding, torch.ones(1, 3, dtype=torch.bool), ["any"])[0]
        attention = network.attention_weights(embedding)[0]
        given = torch.linspace(0.1, 0.9, 3).expand(3, 3).T  # three scores of each component
        read = network.modulate(given, embedding.expand(3, -1))
    rows = tables["weights"]
    assert [row[0] for row in rows] == ["share", "long", "repairs"]
    assert [float(row[1]) for row in rows] == pytest.approx(weights.tolist(), abs=6e-4)
    assert max(weights) - min(weights) > 0.02  # not the prior
    assert [float(row[2]) for row in rows] == pytest.approx([1 / 3] * 3, abs=6e-4)
    for column, row in enumerate(rows):  # eq. 7 with the printed scale and shift gives what the network reads
        scale, shift = float(row[4]), float(row[5])
        logit = torch.logit(given[:, column])
        assert torch.allclose(torch.sigmoid(scale * logit + shift), read[:, column], atol=2e-3)
    rows = tables["attention over 4 prototypes"]
    best = attention.argsort(descending=True)[:3].tolist()
    assert [int(row[0]) for row in rows] == best
    assert [float(row[1]) for row in rows] == pytest.approx(attention[best].tolist(), abs=6e-4)

    tasks = TextData(batch_size=4).train_tasks()
    distinct = sorted({(task.task_type, task.description) for task in tasks})
    vectors = HashingEncoder().encode([text for _, text in distinct]).numpy()
    own = embedding[0].numpy()
    cosines = vectors @ own / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(own), 1e-8)
    rows = tables["nearest training tasks"]
    assert [float(row[0]) for row in rows] == pytest.approx(sorted(cosines, reverse=True)[:3], abs=6e-4)
    assert {(row[1], row[2]) for row in rows} <= set(distinct)


def test_a_known_task_type_masks_what_never_applied(
    run: tuple[Path, PPOModule], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = run
    arguments = ["--ckpt", str(path), "--description", SENTENCE, "--tasks", "0", "--task_type"]
    rows = printed(capsys, *arguments, "synthesis")["weights"]
    assert rows[2][:2] == ["repairs", "masked"]
    assert sum(float(row[1]) for row in rows[:2]) == pytest.approx(1.0, abs=2e-3)
    rows = printed(capsys, *arguments, "repair")["weights"]
    assert "masked" not in [row[1] for row in rows]
    error = refused(capsys, *arguments, "poetry")
    assert "not learned from task type 'poetry' (it has from repair, synthesis)" in error


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_the_picture_is_what_its_name_says(
    run: tuple[Path, PPOModule], tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path, _ = run
    file = tmp_path / "deep" / f"why.{suffix}"
    main(["--ckpt", str(path), "--description", "<script>alert(1)</script>", "--tasks", "0", "--out", str(file)])
    content = file.read_bytes()
    if suffix == "png":
        assert Image.open(io.BytesIO(content)).size[0] > 300
    else:
        assert b"<svg" in content
        assert b"<script>" not in content
    assert f"why.{suffix}" in capsys.readouterr().out.replace("\n", "")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_no_checkpoint_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    listed = tmp_path / "list.ckpt"
    torch.save([1, 2], listed)
    whole = other.read_bytes()
    cases = [
        (tmp_path / "none.ckpt", "checkpoint not found"),
        (write(tmp_path / "text.ckpt", b"hello"), "not a checkpoint, or not whole"),
        (write(tmp_path / "cut.ckpt", whole[: len(whole) // 2]), "not a checkpoint, or not whole"),
        (
            write(tmp_path / "damaged.ckpt", whole.replace(b"state_dict", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6")),
            "checkpoint",
        ),
        (tmp_path, "is a folder"),
        (other, "was not written by PPOModule"),
        (listed, "was not written by PPOModule"),
    ]
    for path, reason in cases:
        assert reason in refused(capsys, "--ckpt", str(path), "--description", "x"), path


def test_a_checkpoint_is_data_and_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"lightning_dterm": Hostile(), "state_dict": {}}, tmp_path / "hostile.ckpt")
    assert "not a checkpoint" in refused(capsys, "--ckpt", str(tmp_path / "hostile.ckpt"), "--description", "x")
    assert not (tmp_path / "ran").exists()


def test_without_a_hypernetwork_there_is_nothing_to_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    train(tmp_path, UniformWeighting())
    capsys.readouterr()
    error = refused(capsys, "--ckpt", str(tmp_path / "run" / "checkpoints" / "last.ckpt"), "--description", "x")
    assert "has no hypernetwork: its weights (UniformWeighting)" in error


def test_a_configuration_that_does_not_fit_is_named(
    run: tuple[Path, PPOModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = run

    def hf(where: str) -> dict[str, Any]:
        return {"class_path": "lightning_dterm.dterm.HFEncoder", "init_args": {"path": where, "cache_dir": None}}

    wide = {"class_path": "lightning_dterm.dterm.HashingEncoder", "init_args": {"dim": 64}}
    uniform = {"class_path": "lightning_dterm.dterm.UniformWeighting"}
    small = {"class_path": "lightning_dterm.dterm.HypernetworkWeighting", "init_args": {"prototypes": 3}}
    cases: Sequence[tuple[Any, str]] = [
        (config(task_encoder=hf(str(tmp_path / "gone"))), "the run's task encoder cannot be made: task encoder"),
        (config(task_encoder=wide), "not the one that the run was trained with (HashingEncoder, d = 64"),
        (config(task_encoder={"class_path": "nowhere.Encoder"}), "task encoder cannot be made"),
        (config(weighting=uniform), "weighting is no hypernetwork"),
        (config(weighting=small), "weighting does not fit the checkpoint"),
        (config(film="none"), "weighting does not fit the checkpoint"),
        ({"data": {}}, "not the configuration of a run"),
        ("just text", "not the configuration of a run"),
    ]
    for content, reason in cases:
        file = write(tmp_path / "config.yaml", yaml.safe_dump(content).encode())
        assert reason in refused(capsys, "--ckpt", str(path), "--description", "x", "--config", str(file)), reason
    broken = write(tmp_path / "broken.yaml", b"{a: [")
    assert "not the configuration" in refused(
        capsys, "--ckpt", str(path), "--description", "x", "--config", str(broken)
    )
    away = write(tmp_path / "away.ckpt", path.read_bytes())
    (tmp_path / "config.yaml").unlink()
    assert "name the run's with --config" in refused(capsys, "--ckpt", str(away), "--description", "x")


def test_options_and_missing_data(
    run: tuple[Path, PPOModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = run
    given = ["--ckpt", str(path), "--description", "x"]
    assert "--top must be at least 1" in refused(capsys, *given, "--top", "0")
    assert "--out must end in .svg, .png, .html" in refused(capsys, *given, "--out", "why.gif")
    assert "HashingEncoder reads no images" in refused(capsys, *given, "--image", "x.png")
    content = config()
    content["data"] = {"class_path": "lightning_dterm.data.JsonlDataModule", "init_args": {"train_files": "gone.jsonl"}}
    file = write(tmp_path / "config.yaml", yaml.safe_dump(content).encode())
    main([*given, "--config", str(file)])
    out = " ".join(capsys.readouterr().out.split())
    assert "no nearest training tasks: the run's training data cannot be read" in out
    assert math.isfinite(float(re.findall(r"share │ ([0-9.]+)", out)[0]))
