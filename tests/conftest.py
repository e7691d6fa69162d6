"""Shared test setup."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("potluck", deadline=None)
settings.load_profile("potluck")

# A shell's `&` has SIGINT ignored, here and in every process that tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread: small tests are faster so, and give the same figures everywhere."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
