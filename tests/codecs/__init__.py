"""Tests of the codecs."""  # noqa: A005 – mirrors potluck.codecs
