"""The key service for twistd's -y, for hosts whose init starts daemons from a file (etc/init.d/ron-kms).

In: the variables CONFIG (the config file) and RON_HOME. Out: `application`.
"""

from __future__ import annotations

import os

from twisted.application.service import Application

from ron.nodes.kms import NAME, Options, makeService

options = Options()
options.parseOptions(["--config", os.environ.get("CONFIG") or "/etc/ron/ron-kms.toml"])
application = Application(NAME)
makeService(options).setServiceParent(application)
