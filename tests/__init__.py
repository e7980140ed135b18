"""Tests; the folders mirror those of `ron`."""

from hypothesis import settings

# an example that takes long on a busy machine is no failure
settings.register_profile("ron", deadline=None)
settings.load_profile("ron")
