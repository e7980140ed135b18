"""The frozen public face of `ron.kernel` against its stored snapshot, tests/kernel/api.json.

Changed on purpose? `python -m tests.kernel.test_api` writes the snapshot anew; its diff belongs into the review.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

import ron.kernel
from ron.kernel import KernelEvent
from ron.kernel.events import AnyKernelEvent

SNAPSHOT = Path(__file__).with_name("api.json")
FROZEN = {"Bus", "KernelEvent", "Metrics", "HealthState", "Config", "wait_for_ctrl_c"}
WHAT_TO_DO = (
    "the public API of ron.kernel is frozen, and it has changed at the places above. Not meant? Undo it. Meant? Every "
    "service stands on it: say why in a newsfragment, and run: python -m tests.kernel.test_api"
)


def api() -> dict[str, Any]:
    """What users of `ron.kernel` can see, as plain values."""
    return {name: _described(getattr(ron.kernel, name)) for name in sorted(ron.kernel.__all__)}


def _described(thing: Any) -> Any:
    if not inspect.isclass(thing):
        return _signature(thing)
    if issubclass(thing, KernelEvent):
        return {
            variant.__name__: _fields(variant) for variant in sorted(thing.__subclasses__(), key=lambda v: v.__name__)
        }
    members = {name: member for name, member in inspect.getmembers_static(thing) if not name.startswith("_")}
    return {
        "(made with)": _signature(thing.__init__),
        **{name: _member(member) for name, member in members.items()},
    }


def _fields(variant: type[Any]) -> dict[str, str]:
    return {field.name: getattr(field.type, "__name__", str(field.type)) for field in msgspec.structs.fields(variant)}


def _member(member: Any) -> str:
    if isinstance(member, property):
        return f"property {_signature(member.fget)}"
    if isinstance(member, staticmethod | classmethod):
        return f"{type(member).__name__} {_signature(member.__func__)}"
    if not callable(member):
        return f"constant {member!r}"
    return f"{'async ' if inspect.iscoroutinefunction(member) else ''}{_signature(member)}"


def _signature(function: Any) -> str:
    # a default that is a function shows where it lies in memory
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(function)))


def _flat(tree: dict[str, Any], path: str = "ron.kernel") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in tree.items():
        inner = _flat(value, f"{path}.{name}") if isinstance(value, dict) else {f"{path}.{name}": str(value)}
        flat.update(inner or {f"{path}.{name}": "{}"})
    return flat


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each place that is not as it was."""
    before, after = _flat(was), _flat(now)
    lines = []
    for place in sorted({*before, *after}):
        if place not in after:
            lines.append(f"- {place}{before[place]}")
        elif place not in before:
            lines.append(f"+ {place}{after[place]}")
        elif before[place] != after[place]:
            lines.append(f"! {place}: {before[place]} → {after[place]}")
    return lines


class Frozen(SynchronousTestCase):
    def test_exactly_these_six(self) -> None:
        self.assertEqual(set(ron.kernel.__all__), FROZEN)
        self.assertEqual(len(ron.kernel.__all__), 6)

    def test_nothing_has_changed(self) -> None:
        lines = differences(json.loads(SNAPSHOT.read_text()), api())
        if lines:
            self.fail("\n".join(["", *lines, "", WHAT_TO_DO]))

    def test_the_four_variants(self) -> None:
        """Blueprint §2.1: Health{service,ok} · ConfigUpdated{version} · ServiceCrashed{service,reason} · Shutdown."""
        fields = {cls.__name__: _fields(cls) for cls in KernelEvent.__subclasses__()}
        self.assertEqual(
            fields,
            {
                "Health": {"service": "str", "ok": "bool"},
                "ConfigUpdated": {"version": "int"},
                "ServiceCrashed": {"service": "str", "reason": "str"},
                "Shutdown": {},
            },
        )
        self.assertEqual({cls.__name__ for cls in AnyKernelEvent.__args__}, set(fields))
        for name in fields:
            self.assertIn(getattr(KernelEvent, name), AnyKernelEvent.__args__)


class TheTestItself(SynchronousTestCase):
    def test_it_notices_what_is_gone_new_or_different(self) -> None:
        was = {"Bus": {"publish": "(self, body)", "tap": "(self)"}, "wait": "(reactor)"}
        now = {"Bus": {"publish": "(self, body, topic)", "drain": "(self)"}, "wait": "(reactor)"}
        self.assertEqual(
            differences(was, now),
            [
                "+ ron.kernel.Bus.drain(self)",
                "! ron.kernel.Bus.publish: (self, body) → (self, body, topic)",
                "- ron.kernel.Bus.tap(self)",
            ],
        )
        self.assertEqual(differences(now, now), [])


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(api(), indent=2, ensure_ascii=False) + "\n")
