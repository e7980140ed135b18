"""The four events of the kernel: what they are, that they cannot be changed, how they look on the wire."""

from __future__ import annotations

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.events import AnyKernelEvent, KernelEvent

texts = st.text(max_size=40)
events = st.one_of(
    st.builds(KernelEvent.Health, texts, st.booleans()),
    st.builds(KernelEvent.ConfigUpdated, st.integers(0, 2**63)),
    st.builds(KernelEvent.ServiceCrashed, texts, texts),
    st.builds(KernelEvent.Shutdown),
)


class BadInput(SynchronousTestCase):
    def test_an_event_cannot_be_changed(self) -> None:
        event = KernelEvent.Health("edge", True)
        with self.assertRaises(AttributeError):
            event.ok = False  # type: ignore[misc]

    @example({"event": "Health", "service": "edge", "ok": 1})
    @example({"event": "Health", "service": "edge"})
    @example({"event": "KernelEvent"})
    @example({"event": "Started", "service": "edge"})
    @example({"event": "Shutdown", "force": True})
    @example({"service": "edge", "ok": True})
    @given(st.dictionaries(st.sampled_from(["event", "service", "ok", "version", "x"]), st.integers() | texts))
    def test_what_is_none_of_the_four_is_refused(self, plain: dict[str, object]) -> None:
        """Also one with a field too many: it comes from a process that means something else by it."""
        try:
            event = msgspec.convert(plain, AnyKernelEvent)
        except msgspec.ValidationError:
            return
        self.assertEqual(msgspec.to_builtins(event), plain)


class OnTheWire(SynchronousTestCase):
    @given(events)
    def test_there_and_back(self, event: AnyKernelEvent) -> None:
        raw = msgspec.msgpack.encode(event)
        self.assertEqual(msgspec.msgpack.decode(raw, type=AnyKernelEvent), event)

    def test_told_apart_by_match(self) -> None:
        told = []
        for event in (KernelEvent.Shutdown(), KernelEvent.ServiceCrashed("edge", "disk full")):
            match event:
                case KernelEvent.ServiceCrashed(service, reason):
                    told.append((service, reason))
                case KernelEvent.Shutdown():
                    told.append(("", "down"))
        self.assertEqual(told, [("", "down"), ("edge", "disk full")])

    def test_all_four_are_kernel_events(self) -> None:
        self.assertEqual(
            {cls.__name__ for cls in KernelEvent.__subclasses__()},
            {"Health", "ConfigUpdated", "ServiceCrashed", "Shutdown"},
        )
