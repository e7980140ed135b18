"""A node of a cluster for twistd's -y, for hosts whose init starts daemons from a file (etc/init.d/ron-balance).

In: the variables CONFIG (the config file) and RON_HOME. Out: `application`.
"""

from __future__ import annotations

import os

from twisted.application.service import Application

from ron.nodes.balance import NAME, Options, makeService

options = Options()
options.parseOptions(["--config", os.environ.get("CONFIG") or "/var/lib/ron/balance/etc/balance.toml"])
application = Application(NAME)
makeService(options).setServiceParent(application)
