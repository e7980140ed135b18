"""Which request the code that runs just now works for: its correlation id follows it through awaits, calls and logs.

In: `begin` where a request or a command arrives. Out: `current`, for whatever it causes: log lines, commands, events.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token

# What every log line of the request says: `corr_id`, and `request_id` and `peer_addr` where they are known.
_about: ContextVar[Mapping[str, str]] = ContextVar("ron_correlation")
_NOTHING: Mapping[str, str] = {}


def begin(corr_id: str, **more: str | None) -> Token[Mapping[str, str]]:
    """From here to `end`, and in the coroutines begun between, everything belongs to `corr_id`."""
    about = {"corr_id": corr_id}
    if more:
        about.update({name: value for name, value in more.items() if value is not None})
    return _about.set(about)


def tell(**more: str) -> None:
    """More is known of the request that is being worked on: for the log lines of whoever asks from here on."""
    _about.set({**_about.get(_NOTHING), **more})


def end(mark: Token[Mapping[str, str]]) -> None:
    """What `begin` began is over."""
    _about.reset(mark)


def about() -> Mapping[str, str]:
    """What is known of the request, for a log line."""
    return _about.get(_NOTHING)


def current() -> str | None:
    """The correlation id, or None where no request is being worked on."""
    return _about.get(_NOTHING).get("corr_id")
