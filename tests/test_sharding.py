"""What sharding needs of optimizers and strategies, without several processes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType
from torch.optim import AdamW

from lightning_dterm.modules.checkpoints import number_by_module
from lightning_dterm.modules.sharding import adam_from_zero, data_parallel_mesh


def two_parts() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(3, 2), "late": nn.Linear(3, 2)})


def adam(model: nn.Module, **options: Any) -> AdamW:
    return AdamW(model.parameters(), lr=0.1, **options)


def step(model: Any, optimizer: AdamW, *parts: str) -> None:
    optimizer.zero_grad()
    sum(model[part](torch.tensor([[1.0, -2.0, 0.5]])).square().sum() for part in parts).backward()  # type: ignore[union-attr]
    optimizer.step()


def test_the_state_from_zero_changes_no_step() -> None:
    plain, given = two_parts(), two_parts()
    usual, zeroed = adam(plain), adam_from_zero(adam(given))
    for parts in (["first"], ["first", "late"], ["late"], ["first", "late"]):
        for model, optimizer in ((plain, usual), (given, zeroed)):
            step(model, optimizer, *parts)
        for one, two in zip(plain.parameters(), given.parameters(), strict=True):
            assert torch.equal(one, two)
    for one, two in zip(plain.parameters(), given.parameters(), strict=True):
        ours, theirs = zeroed.state[two], usual.state[one]
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert ours[name].device == tensor.device
            assert torch.equal(ours[name], tensor)


def test_a_checkpoint_from_before_a_first_gradient_resumes_exactly() -> None:
    """As torch saves and loads the optimizer of a sharded model: it takes a step where there is no state."""
    model = two_parts()
    whole = adam_from_zero(adam(model))
    step(model, whole, "first")
    saved = copy.deepcopy((model.state_dict(), get_optimizer_state_dict(model, whole)))
    for _ in range(2):
        step(model, whole, "first", "late")
    without = copy.deepcopy(saved[1])  # of a run before this rule, which had no such state
    without["state"] = {name: state for name, state in without["state"].items() if not name.startswith("late")}  # type: ignore[union-attr]
    for optimizer_state in (saved[1], without):
        resumed = two_parts()
        resumed.load_state_dict(saved[0])
        optimizer = adam_from_zero(adam(resumed))
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(resumed, optimizer, copy.deepcopy(optimizer_state), options=options)
        for _ in range(2):
            step(resumed, optimizer, "first", "late")
        for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, two)
            assert float(optimizer.state[two]["step"]) == float(whole.state[one]["step"])


def test_a_checkpoint_of_one_process_keeps_its_numbers_under_fsdp2() -> None:
    """FSDP2 gives the state with number i to the module's parameter i, in whatever order the optimizer has them."""
    model = two_parts()
    names = dict(model.named_parameters())
    groups = [{"params": [names[f"{part}.{kind}"] for part in ("first", "late")]} for kind in ("bias", "weight")]
    optimizer = AdamW(groups, lr=0.1)
    step(model, optimizer, "late")
    checkpoint = {"optimizer_states": [optimizer.state_dict()]}
    module: Any = SimpleNamespace(parameters=model.parameters, trainer=SimpleNamespace(optimizers=[optimizer]))
    number_by_module(module, checkpoint)
    (saved,) = checkpoint["optimizer_states"]
    renamed = FullyShardedDataParallel.rekey_optim_state_dict(copy.deepcopy(saved), OptimStateKeyType.PARAM_NAME, model)
    assert set(renamed["state"]) == {"late.weight", "late.bias"}
    for name, state in renamed["state"].items():
        assert torch.equal(state["exp_avg"], optimizer.state[names[name]]["exp_avg"])
    again = AdamW(groups, lr=0.1)
    again.load_state_dict(saved)
    for parameter, state in optimizer.state.items():
        assert torch.equal(again.state[parameter]["exp_avg"], state["exp_avg"])
    number_by_module(module, checkpoint)  # FSDP2's own are numbered so: nothing changes
    assert list(checkpoint["optimizer_states"][0]["state"]) == list(saved["state"])
    number_by_module(module, {"optimizer_states": [{}]})  # a rank that has nothing to save


def strategy(tensor_parallel: int, folders: bool, training: bool) -> Any:
    mesh = {"data_parallel": "the mesh", "tensor_parallel": SimpleNamespace(size=lambda: tensor_parallel)}
    trainer = SimpleNamespace(training=training, strategy=SimpleNamespace(_save_distributed_checkpoint=folders))
    return SimpleNamespace(device_mesh=mesh, trainer=trainer)


def test_checkpoints_that_are_folders_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"save_distributed_checkpoint must be false, as in configs/strategy/fsdp2"):
        data_parallel_mesh(strategy(1, True, True))
    for folders, training in ((True, False), (False, True)):
        assert data_parallel_mesh(strategy(1, folders, training)) == "the mesh"
    with pytest.raises(ValueError, match="tensor_parallel_size must be 1"):
        data_parallel_mesh(strategy(2, False, True))
