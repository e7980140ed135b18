"""What a target raises when something is wrong that is no exception by itself."""


class Finding(Exception):
    """Something was accepted that must not be."""
