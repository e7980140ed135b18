"""What nodes of a cluster say to each other beside what the vault says, and which of it others act on at once.

In: nothing. Out: kinds, shapes, and what is news. Pure.
"""

from __future__ import annotations

import msgspec

from ron.proto.balance import Beat, Said

BEAT = "balance/beat"
DESCRIPTOR = "balance/descriptor"
ASK_DESCRIPTOR = "balance/ask-descriptor"
ASK_PUBLISH = "balance/ask-publish"


class Nothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message whose kind says it all."""


class PublishAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To whoever leads: publish anew, because of `why`."""

    why: Said


def matters(beat: Beat) -> tuple[object, ...]:
    """Of another's beat: what the cluster acts on at once."""
    head = beat.head
    failing = tuple(each.service for each in head.failing)
    return beat.fit, beat.leads, head.mode, head.healthy, failing, head.under_siege


def news_in(beat: Beat) -> tuple[object, ...]:
    """Of our own: what others are to hear at once. Figures can wait."""
    published = tuple((told.service, told.period, told.revision, told.taken) for told in beat.published)
    return *matters(beat), beat.head.onion, beat.head.descriptor, beat.hears, published, beat.services
