"""What the node's own process decides for its children."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import Layers
from ron.nodes.macronode import _environment, as_started
from ron.services.configs import SCHEMAS, NodeConfig


def config(**flags: str) -> NodeConfig:
    value: Any = Layers(*SCHEMAS["ron-node"], None, {}, {k.replace("__", "."): v for k, v in flags.items()}).resolve()
    assert isinstance(value, NodeConfig)
    return value


class AsStartedTests(SynchronousTestCase):
    def test_what_takes_effect_at_once_is_current_and_the_rest_as_it_was(self) -> None:
        started = config()
        current = config(
            limits__concurrency="77", log__level="debug", log__to="memory", onion__amnesia="true", onion__app="other"
        )
        handed = as_started(started, current)
        self.assertEqual((handed.limits.concurrency, handed.log.level), (77, "debug"))
        self.assertEqual((handed.log.to, handed.onion), (started.log.to, started.onion))

    def test_nothing_changed(self) -> None:
        self.assertEqual(as_started(config(), config()), config())


class EnvironmentTests(SynchronousTestCase):
    def test_what_an_exporter_of_traces_needs_and_no_secret_of_ours(self) -> None:
        ours = {
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
            "RON_CAP": "Ag",
            "RON_LIMITS_CONCURRENCY": "3",
            "RON_CA_PASSPHRASE": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        self.patch(os, "environ", ours)
        given = _environment(Path("/home"))
        self.assertEqual(given, {"RON_HOME": "/home", "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem"})
