"""Reduction of the members' contributions to one part."""
