"""Fuzzing with atheris (libFuzzer): hostile bytes go in, only `RonError` may come out.

`scripts/fuzz` runs the targets, each in a process of its own; `targets.py` has them; `corpus/` keeps what was found
worth starting from. `tests/fuzz` replays the corpus and fuzzes each target for some seconds.
"""
