"""The ground every service stands on: bus, supervision, config snapshots, health, metrics, limits, an orderly end.

These six names are frozen (blueprint §2.1): tests/kernel/test_api.py holds them. docs/kernel.rst explains the rooms.
"""

from ron.kernel.bus import Bus
from ron.kernel.config import Config
from ron.kernel.events import KernelEvent
from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics
from ron.kernel.signals import wait_for_ctrl_c

__all__ = ["Bus", "Config", "HealthState", "KernelEvent", "Metrics", "wait_for_ctrl_c"]
