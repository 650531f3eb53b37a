"""One setting for the whole suite: property tests draw the same examples every time and are not timed."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
