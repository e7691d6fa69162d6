"""The shell of a peer: it drives the core, and owns every socket, task, timer, thread and tensor."""
