"""Shared test setup."""

from __future__ import annotations

import signal

# A shell's `&` has SIGINT ignored, here and in every process that tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
