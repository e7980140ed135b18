"""RustyOnions: a private-onion platform in Python on Twisted."""

__version__ = "0.1.0"
