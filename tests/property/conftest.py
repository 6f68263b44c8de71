"""How hypothesis runs here: the same examples every time, and no deadline, as a busy machine is no failure.

To look for new counterexamples: ``pytest tests/property --hypothesis-profile=search``.
"""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("repeatable")
