"""How a process of several ends: the group goes while nothing else owns it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from lightning_dterm.modules import distributed


class Discarded:
    """Garbage that only a collection finds, as a DDP module is after an error."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_discarded_is_gone_before_the_group_is_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a reducer may be the group's last owner; its collection at exit waits for ever (gloo, torch 2.13)."""
    gone: list[Any] = []
    left = weakref.ref(Discarded())
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: gone.append(left()))
    distributed._destroy_process_group()
    assert gone == [None]
