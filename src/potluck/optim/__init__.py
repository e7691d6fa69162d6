"""The outer optimizer, and the digest of its state."""
