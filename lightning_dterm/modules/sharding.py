"""FSDP2: which parts are sharded, and how a sharded actor generates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(policy: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every decoder layer of actor, reference and critic, then the rest of ``policy`` as their root."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for module in list(policy.modules()):
        if isinstance(module, nn.ModuleList) and len(module) and _is_block_list(module):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    # the first call on a sharded model must go through its root, and the first thing a run does is generate
    register_fsdp_forward_method(policy, "generate")


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

    sharded = [m for m in (root, *part.modules()) if isinstance(m, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def is_sharded(parameter: torch.Tensor) -> bool:
    """True for an FSDP2 parameter."""
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)
