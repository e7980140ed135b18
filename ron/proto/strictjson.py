"""JSON that says each thing once: msgspec takes the last of two equal names, another reader might take the first.

In: bytes from somebody else, the struct they are to be. Out: the struct, or `msgspec.ValidationError`, so that whoever
decodes has one kind of refusal. The standard library's scanner looks for repeated names, after msgspec has judged all
else. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from json import JSONDecoder
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
# What is shown of a name that somebody else chose.
_SHOWN_CHARS = 64
_LARGE_BYTES = 1024


class _TwiceError(Exception):
    """A name that an object has twice. No ValueError: the scanner's own are something else."""


def strict_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A decoder for `kind`, made once.

    It raises `msgspec.ValidationError` for what is no such struct or has a name twice in one object at any depth,
    `msgspec.DecodeError` for what is no JSON, RecursionError for what is nested too deep.
    """
    decode = msgspec.json.Decoder(kind, strict=True).decode

    def strictly(raw: bytes) -> T:
        found = decode(raw)
        check_names(raw)
        return found

    return strictly


def check_names(raw: bytes) -> None:
    """Raises as `strict_decoder`. raw: JSON that msgspec has taken."""
    # an object with one name has none twice, and many bodies are one; `count` would go through all of it
    if raw.find(b":", raw.find(b":") + 1) < 0 or (len(raw) > _LARGE_BYTES and _all_differ(raw)):
        return
    try:
        _scan(raw.decode("utf-8"))
    except _TwiceError as error:
        name = str(error)
        shown = name if name.isidentifier() and len(name) <= _SHOWN_CHARS else "a name"
        raise msgspec.ValidationError(f"Object contains `{shown}` twice") from None
    except ValueError:
        # what one of two readers cannot read is not answered
        raise msgspec.DecodeError("JSON that is read in two ways") from None


def _all_differ(raw: bytes) -> bool:
    """A look at a large body, which is one long value mostly: no name comes twice in all of it. False: it is not known.

    Without a backslash every second quote ends a string, and a string is a name where a colon follows (RFC 8259 §4).
    """
    if b"\\" in raw:
        return False
    parts = raw.split(b'"')
    names = [text for text, after in zip(parts[1::2], parts[2::2], strict=True) if after.lstrip()[:1] == b":"]
    return len(set(names)) == len(names)


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Throws the object away: it is the names that are looked at."""
    if len(pairs) > 1 and len(dict(pairs)) < len(pairs):
        seen: set[str] = set()
        for name, _value in pairs:
            if name in seen:
                raise _TwiceError(name)
            seen.add(name)


# numbers are not made: one of a million digits would take its time
_scan = JSONDecoder(object_pairs_hook=_once, parse_int=str, parse_float=str).decode
