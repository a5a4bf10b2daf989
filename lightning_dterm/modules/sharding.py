"""FSDP2: which parts are sharded, how a sharded model generates, and how its weights are gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lightning_dterm.modules.distributed import rank

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
_GATHERING = "_call_with_weights_gathered"


def data_parallel_mesh(module: nn.Module) -> DeviceMesh | None:
    """The processes over which a LightningModule is to be sharded; None where the strategy shards nothing.

    Raises:
        ValueError: If the strategy asks for tensor parallelism: no layer here is split, and every process of such a
            group would train on other data as if it were a replica of its own. Or, in training, if it saves
            checkpoints that are folders: they would hold, and be asked for, other entries than those that train.
    """
    mesh = getattr(module, "device_mesh", None)
    if mesh is None:
        return None
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"tensor_parallel_size must be 1: tensor parallelism is not supported (got "
            f"{mesh['tensor_parallel'].size()}); give data_parallel_size the number of processes"
        )
    trainer: Any = module.trainer
    if trainer.training and trainer.strategy._save_distributed_checkpoint:
        raise ValueError(
            "trainer.strategy: save_distributed_checkpoint must be false, as in configs/strategy/fsdp2.yaml: from "
            "checkpoints that are folders of shards no run could be resumed, nor a model be exported"
        )
    chosen: DeviceMesh = mesh["data_parallel"]
    return chosen


def shard(root: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every decoder layer inside ``root``, then the rest of ``root`` as their root."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for module in list(root.modules()):
        if isinstance(module, nn.ModuleList) and len(module) and _is_block_list(module):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)
    setattr(root, _GATHERING, _call)
    register_fsdp_forward_method(root, _GATHERING)


def _call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return function(*args, **kwargs)


def as_forward(root: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call ``function``, which uses parts of ``root``, as if it were the forward of ``root``.

    FSDP2 gathers a root's weights in its forward, and the first thing that is called on it must be one. Where nothing
    is sharded this is a plain call.
    """
    call: Callable[..., T] = getattr(root, _GATHERING, _call)
    return call(function, *args, **kwargs)


def _is_block_list(modules: nn.ModuleList) -> bool:
    """Decoder layers: a list of equal composite modules (adapters and experts are other containers)."""
    return len({type(m) for m in modules}) == 1 and len(list(modules[0].children())) > 1


@contextmanager
def unsharded(root: nn.Module, part: nn.Module) -> Iterator[None]:
    """``root``'s own FSDP2 group and all those in ``part`` gathered and kept so; a no-op where nothing is sharded.

    Decoding calls a model as many times as the longest response on *this* rank: a gather inside would wait for ever
    for a rank whose responses are shorter. With the weights resident the loop is local.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [m for m in dict.fromkeys((root, *part.modules())) if isinstance(m, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def adam_from_zero(optimizer: AdamW) -> AdamW:
    """Give every parameter of a new optimizer the state that Adam would give it before its first gradient.

    It changes no step. Where torch saves or loads a sharded optimizer it gives a state to a parameter without one by a
    step with gradient 0: after a resume such a parameter would be a step ahead, its bias correction another.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **moments}
    return optimizer


def full_state(module: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of a sharded module, gathered tensor by tensor to rank 0's memory; a collective.

    Returns:
        None on the other ranks.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        gathered = whole(tensor)
        if rank() == 0:
            state[name] = gathered.cpu()
    return state if rank() == 0 else None


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, which is a collective; any other as it is."""
    gathered: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return gathered


def has_shards(module: nn.Module) -> bool:
    """True if any parameter of ``module`` is sharded."""
    return any(is_sharded(parameter) for parameter in module.parameters())


def is_sharded(parameter: torch.Tensor) -> bool:
    """True for an FSDP2 parameter."""
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)
