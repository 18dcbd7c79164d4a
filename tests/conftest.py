"""Settings of the whole suite."""

from hypothesis import settings

# Deadlines are wall clock, and wall clock belongs in `make bench`: a busy machine must not fail.
settings.register_profile("course", deadline=None)
settings.load_profile("course")
