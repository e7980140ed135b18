"""A Macronode as its operator runs it: everything that a Micronode promises. Needs tor."""

from __future__ import annotations

from tests.live import test_node
from tests.live.support import MACRONODE


class SharedMacronodeTests(test_node.SharedNodeTests):
    """Everything a Micronode promises while it is well, kept by a Macronode."""

    config = MACRONODE
    processes = 9 + 5
