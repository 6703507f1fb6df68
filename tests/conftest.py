"""Settings for all tests."""

from hypothesis import settings

# The same cases every time and on every machine: a run that passed can be relied on to pass again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
