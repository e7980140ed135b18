"""Composition: a profile and its config become a tree of services. No logic of their own."""
