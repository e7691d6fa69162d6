"""Bytes between machines: one ``Transport`` interface; TLS over TCP, and an in-memory one for tests."""
