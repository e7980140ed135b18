"""The ground every service stands on: config snapshots, health, metrics, logs, bounded threads, restart policy.

First slice. The bus and the supervisor join later; nothing above may grow its own version of what lives here.
"""

from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics

__all__ = ["HealthState", "Metrics"]
