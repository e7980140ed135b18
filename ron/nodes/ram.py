"""A folder in memory for a node with amnesia: what its processes share, and what tor wants in files.

In: the node's home. Out: a private folder on tmpfs that is empty; what an earlier run was killed over is removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from blake3 import blake3

RAM_DIRECTORY = Path("/dev/shm")  # noqa: S108 - memory-backed on Linux, and the folder made in it is 0700


def ram_directory(home: Path, *, parent: Path = RAM_DIRECTORY) -> Path:
    """A new folder (0700). The caller holds the lock on `home`, so that whatever else is there for it is a leftover."""
    prefix = f"ron-{os.getuid()}-{blake3(os.fsencode(home)).hexdigest()[:16]}-"
    for leftover in parent.glob(f"{prefix}*"):
        # in a folder that anybody may write to, a name alone is no proof of whose it is
        if leftover.lstat().st_uid == os.getuid() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
