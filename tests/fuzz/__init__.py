"""Fuzzing of the core: schedules of what both sides send, and an independent verdict.

`python -m tests.fuzz --seconds 3600` looks for new ones; `corpus` is what was found worth keeping.
The tests play it, and schedules made from it, the same ones each time.

Trace files are the second target (`--target trace`): what an untrusted file makes the commands do.
"""
