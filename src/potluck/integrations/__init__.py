"""Potluck inside training libraries that own the loop: a callback for each, and the loop stays theirs."""
