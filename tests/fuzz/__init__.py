"""Fuzzing of all that reads what a peer sends.

``script`` turns any bytes into choices, ``frames`` turns choices into frames and records, ``targets`` gives them to the
readers and checks what comes back. Nothing there needs a fuzzer: the same targets are run on the kept inputs of
tests/corpus and on hypothesis' bytes in ``make test``. ``python -m tests.fuzz`` lets a coverage-guided fuzzer look for
inputs that they fail on.
"""
