"""Which tor hosts an onion: the one for all, or one of its own."""

from __future__ import annotations

import hashlib

from ron.services.oniond.model import Onion

# The client tor that hosts the onions of all apps that share one.
HOST_ROLE = "onion"


def role_of(onion: Onion) -> str:
    """The name of its tor. It tells nobody whose it is."""
    if onion.isolation == "shared":
        return HOST_ROLE
    return f"own-{hashlib.sha256(onion.id.encode()).hexdigest()[:12]}"
