from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dterm.data.base import CodeDataModule
from lightning_dterm.data.loader import ResumableDataLoader, ShardedBatchSampler
from lightning_dterm.types import CodeTask

pytestmark = pytest.mark.filterwarnings("ignore")


def task(index: int) -> CodeTask:
    return CodeTask(f"t{index}", "synthesis", "python", "prompt", "description", "reference")


class TaskData(CodeDataModule):
    def __init__(self, rows: int = 22, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rows = rows

    def train_tasks(self) -> list[CodeTask]:
        return [task(index) for index in range(self.rows)]

    validation_tasks = test_tasks = train_tasks


class Recorder(L.LightningModule):
    """Notes the rows it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, ...]] = []
        self.validated: list[tuple[str, ...]] = []

    def training_step(self, batch: list[CodeTask], batch_idx: int) -> None:
        assert type(batch) is list
        self.seen.append(tuple(row.task_id for row in batch))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight * 1.0)
        optimizer.step()

    def validation_step(self, batch: list[CodeTask], batch_idx: int) -> None:
        assert type(batch) is list
        self.validated.append(tuple(row.task_id for row in batch))

    def predict_step(self, batch: list[CodeTask], batch_idx: int) -> list[str]:
        assert type(batch) is list
        return [row.task_id for row in batch]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(root: Path, *, ckpt: Path | None = None, data: dict | None = None, save=None, **trainer) -> Recorder:
    module = Recorder()
    settings = {"max_epochs": -1, "limit_val_batches": 0, **trainer}
    L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[save or ModelCheckpoint(root, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        **settings,
    ).fit(module, TaskData(**{"batch_size": 4, **(data or {})}), ckpt_path=ckpt)
    return module


# --- order -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    length=st.integers(0, 60),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 4),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_together_are_the_single_process_batch(length, batch_size, world_size, shuffle, drop_last, epoch) -> None:
    def sampler(size: int, rank: int, world: int) -> list[list[int]]:
        sampler = ShardedBatchSampler(length, size, rank, world, shuffle, 3, drop_last)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        return batches

    single = sampler(batch_size * world_size, 0, 1)
    ranks = [sampler(batch_size, rank, world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(single)}
    for position, whole in enumerate(single):
        merged = [None] * len(whole)
        for rank in range(world_size):
            merged[rank::world_size] = ranks[rank][position]
        assert merged == whole
    rows = [row for batch in single for row in batch]
    assert len(set(rows)) == len(rows)
    if drop_last:
        assert all(len(batch) == batch_size for batches in ranks for batch in batches)
        assert len(rows) == length - length % (batch_size * world_size)
    else:
        assert sorted(rows) == list(range(length))


def test_evaluation_gives_every_rank_the_same_number_of_batches() -> None:
    ranks = [list(ShardedBatchSampler(5, 2, rank, 4)) for rank in range(4)]
    assert ranks == [[[0, 4]], [[1]], [[2]], [[3]]]
    ranks = [list(ShardedBatchSampler(9, 2, rank, 4)) for rank in range(4)]
    assert ranks == [[[0, 4], [8]], [[1, 5], []], [[2, 6], []], [[3, 7], []]]


def test_orders_differ_between_epochs_and_seeds_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return ShardedBatchSampler(50, 5, shuffle=True, seed=seed).order(epoch).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1, "rank": 2}, "rank"),
        ({"batch_size": 1, "seed": -1}, "seed"),
    ],
)
def test_sampler_refuses_nonsense(kwargs, word) -> None:
    with pytest.raises(ValueError, match=word):
        ShardedBatchSampler(10, **kwargs)


# --- the loader alone ------------------------------------------------------------------------------------------------


def rows_of(loader: ResumableDataLoader) -> list[tuple[str, ...]]:
    return [tuple(row.task_id for row in batch) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_loader_resumes_at_the_row(workers, taken) -> None:
    def loader() -> ResumableDataLoader:
        sampler = ShardedBatchSampler(22, 4, shuffle=True, seed=5, drop_last=True)
        return ResumableDataLoader([task(index) for index in range(22)], sampler, workers)

    whole = loader()
    whole.batch_sampler.set_epoch(1)
    expected = rows_of(whole)
    first = loader()
    first.batch_sampler.set_epoch(1)
    iterator = iter(first)
    for _ in range(taken):
        next(iterator)
    state = first.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    if taken < 5:
        assert rows_of(resumed) == expected[taken:]
        assert len(resumed) == 5
    else:
        assert (state["epoch"], state["batches"]) == (2, 0)
    assert rows_of(resumed) == rows_of(whole)  # the next epoch of both


def test_iterating_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    rows_of(ResumableDataLoader([task(0)], ShardedBatchSampler(1, 1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("key", "value"), [("rows", 21), ("seed", 6), ("global_batch_size", 8)])
def test_loader_refuses_a_position_in_other_data(key, value) -> None:
    loader = ResumableDataLoader([task(0)] * 22, ShardedBatchSampler(22, 4, shuffle=True, seed=5))
    with pytest.raises(ValueError, match=f"{key}={value}"):
        loader.load_state_dict({**loader.state_dict(), key: value})


def small_loader(tasks: list[CodeTask]) -> ResumableDataLoader:
    return ResumableDataLoader(tasks, ShardedBatchSampler(22, 4, shuffle=True, seed=5, drop_last=True))


@pytest.mark.parametrize("row", [0, 2, 10, 11, 19, 21])
@pytest.mark.parametrize("change", [{"task_id": "u"}, {"prompt": "q"}, {"reference": "\ud800"}])
def test_loader_refuses_other_data_of_the_same_length(row, change) -> None:
    tasks = [task(index) for index in range(22)]
    state = small_loader(tasks).state_dict()
    small_loader([*tasks, task(99)]).load_state_dict(state)  # a row beyond the limit is not this run's
    other = [*tasks[:row], replace(tasks[row], **change), *tasks[row + 1 :]]
    with pytest.raises(ValueError, match=r"content=.* the same data files"):
        small_loader(other).load_state_dict(state)


def test_a_checkpoint_that_names_no_data_is_told() -> None:
    loader = small_loader([task(index) for index in range(22)])
    state = {**loader.state_dict(), "batches": 2}
    del state["content"]
    with pytest.warns(UserWarning, match="does not say which training data"):
        loader.load_state_dict(state)
    assert loader.state_dict()["batches"] == 2


# --- Lightning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 6, 10])
@pytest.mark.parametrize("workers", [0, 2])
def test_fit_in_pieces_sees_the_same_rows(tmp_path, cut, workers) -> None:
    """Five batches an epoch: the cuts lie within an epoch, at its end and in the next."""
    data = {"num_workers": workers}
    whole = fit(tmp_path / "whole", max_steps=12, data=data)
    assert len(whole.seen) == 12
    assert len({row for batch in whole.seen[:5] for row in batch}) == 20
    first = fit(tmp_path / "first", max_steps=cut, data=data)
    second = fit(tmp_path / "second", max_steps=12, ckpt=tmp_path / "first" / f"step={cut}.ckpt", data=data)
    assert first.seen + second.seen == whole.seen


@pytest.mark.parametrize("cut", [2, 5, 7])
def test_resume_from_a_checkpoint_in_the_middle_of_a_longer_run(tmp_path, cut) -> None:
    whole = fit(tmp_path / "whole", max_steps=12)
    resumed = fit(tmp_path / "resumed", max_steps=12, ckpt=tmp_path / "whole" / f"step={cut}.ckpt")
    assert resumed.seen == whole.seen[cut:]


@pytest.mark.parametrize("epochs", [1, 2])
def test_resume_from_last_after_whole_epochs(tmp_path, epochs) -> None:
    def last(name: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / name, save_last=True)

    validate = {"limit_val_batches": 1.0}
    whole = fit(tmp_path, max_epochs=3, save=last("whole"), **validate)
    first = fit(tmp_path, max_epochs=epochs, save=last("first"), **validate)
    second = fit(tmp_path, max_epochs=3, ckpt=tmp_path / "first" / "last.ckpt", save=last("second"), **validate)
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 15


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_resume_with_limited_epochs_and_validation_between(tmp_path, cut) -> None:
    limits = {"limit_train_batches": 3, "limit_val_batches": 1.0, "val_check_interval": 2}
    whole = fit(tmp_path / "whole", max_steps=8, **limits)
    resumed = fit(tmp_path / "resumed", max_steps=8, ckpt=tmp_path / "whole" / f"step={cut}.ckpt", **limits)
    assert resumed.seen == whole.seen[cut:]


def test_a_batch_that_does_not_divide_over_the_processes_is_refused() -> None:
    class Two(TaskData):
        def _shard(self) -> tuple[int, int]:
            return 1, 2

    data = Two(batch_size=5)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"batch_size 5 .* does not divide over 2 processes; choose a multiple of 2"):
        data.train_dataloader()


class RecorderOnDisk(Recorder):
    """Leaves what each rank saw in a file, for the process that started it."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        torch.save((self.seen, self.validated), f"{self.folder}/rank{self.global_rank}.pt")


def test_two_processes_continue_a_run_of_one(tmp_path) -> None:
    """``batch_size`` spans processes, so a checkpoint of one resumes on two; validation is uneven, a batch empty."""
    whole = fit(tmp_path / "whole", max_steps=8, data={"rows": 21})
    L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, max_steps=8,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, max_epochs=-1,
    ).fit(
        RecorderOnDisk(str(tmp_path)),
        TaskData(rows=21, batch_size=4, eval_batch_size=5),
        ckpt_path=tmp_path / "whole" / "step=3.ckpt",
    )  # fmt: skip
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    merged = [
        tuple(row for pair in zip(*batches, strict=True) for row in pair)
        for batches in zip(ranks[0][0], ranks[1][0], strict=True)
    ]
    assert merged == whole.seen[3:]
    assert [[len(batch) for batch in validated] for _, validated in ranks] == [[5, 5, 1], [5, 5, 0]]
    rows = sorted(int(row[1:]) for _, validated in ranks for batch in validated for row in batch)
    assert rows == list(range(21))


def test_two_epochs_use_different_orders_in_lightning(tmp_path) -> None:
    seen = fit(tmp_path, max_steps=10).seen
    assert seen[:5] != seen[5:]
    sampler = ShardedBatchSampler(22, 4, shuffle=True, drop_last=True)
    expected = [tuple(f"t{row}" for row in batch) for epoch in range(2) for batch in sampler.batches(epoch)]
    assert seen == expected


@pytest.mark.parametrize("precision", ["32", "bf16-true", "bf16-mixed", "64-true"])
def test_plain_lists_reach_the_module_under_every_precision(tmp_path, precision) -> None:
    module, data = Recorder(), TaskData(rows=11, batch_size=4, eval_batch_size=4)
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    assert len(module.seen) == 2
    rows = [tuple(f"t{row}" for row in range(start, min(start + 4, 11))) for start in (0, 4, 8)]
    assert module.validated[-3:] == rows
    assert [tuple(batch) for batch in trainer.predict(module, data)] == rows


def test_limits_and_messages(tmp_path) -> None:
    data = TaskData(rows=10, limit_test=3, limit_train=9, batch_size=4)
    data.setup("test")
    assert [len(batch) for batch in data.test_dataloader()] == [3]
    data.setup("fit")
    assert np.concatenate(list(data.train_dataloader().batch_sampler)).max() < 9
    small = TaskData(rows=10, batch_size=16)
    small.setup("fit")
    with pytest.raises(ValueError, match="10 rows, too few for one batch of 16"):
        small.train_dataloader()
    with pytest.raises(ValueError, match="limit_test"):
        TaskData(limit_test=0)
    with pytest.raises(NotImplementedError, match="CodeDataModule has no training split"):
        CodeDataModule().setup("fit")
