"""Test doubles as product: the simulator, virtual time, and the in-memory twins of what a run uses."""
