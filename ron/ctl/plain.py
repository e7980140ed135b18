"""Text that came from elsewhere, for a terminal.

In: any string. Out: one printable line: a crash reason or an event may hold what some program wrote, and a terminal
would obey the control characters in it.
"""

from __future__ import annotations


def plain_text(text: str) -> str:
    """`text` on one line, each control character (C0, C1, line breaks, bidirectional marks) as its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
