"""The cores: what to do, decided without doing any of it.

Nothing here reads a clock, a socket, the environment or a tensor. Records, announcements and outcomes go
in with the time at which they came; effects come out, and the shell (or the simulator) carries them out.
Everything iterates in sorted order, so that the same inputs give the same decisions.
"""
