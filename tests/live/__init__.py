"""Tests against real components: tor, Chromium, whole daemons as their operators start them."""
