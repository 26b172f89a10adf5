"""Fixtures that every test may ask for."""

from hypothesis import settings

pytest_plugins = ["tests.services", "tests.llm"]

# How long an example takes depends on what else the machine does; the tests' own timeout ends what hangs.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")
