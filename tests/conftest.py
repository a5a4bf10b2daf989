"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from lightning_dterm.cli import DEBUG_VARIABLE

# How long an example takes is the machine's affair, and says nothing about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """``seed_everything`` and ``--debug`` leave their word in the environment, where the next test would find it."""
    for name in ("PL_GLOBAL_SEED", DEBUG_VARIABLE):
        os.environ.pop(name, None)
    yield
    for name in ("PL_GLOBAL_SEED", DEBUG_VARIABLE):
        os.environ.pop(name, None)
