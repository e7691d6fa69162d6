"""Text, tokens and batches, and the files that a run brings to those who join."""
