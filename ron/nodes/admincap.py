"""The node's own capability for whoever runs it: a file that only its owner may read, valid as long as the node runs.

In: the node's keys. Out: `admin.cap` (0600): kept while it verifies, minted anew when it does not, or when the root
key it stands on is no longer the current one.
"""

from __future__ import annotations

from pathlib import Path

from ron.auth import Authority, Caveat, Wanted, inspect
from ron.auth.files import AuthFiles
from ron.kernel.files import read_private, write_private
from ron.proto.errors import RonError

ADMIN_CAP = "admin.cap"


class AdminCapability:
    """The capability in the file at `path`. Everything here waits for the disk, and at most 2 s for another writer."""

    def __init__(self, path: Path, auth: AuthFiles, authority: Authority) -> None:
        self.path = path
        self._auth = auth
        self._authority = authority
        self._due = False

    def write(self) -> Path:
        """Have one that verifies. Raises `RonError` or OSError when there is none and none can be written."""
        if not self._verifies():
            self._issue()
        return self.path

    def keep_up(self, *, keys_changed: bool) -> None:
        """To be called again and again: it must not die with the grace of its root key.

        Raises as `write`, and then the next call tries again.
        """
        self._due = self._due or keys_changed
        if self._due:
            if not self._is_current():
                self._issue()
            self._due = False

    def _verifies(self) -> bool:
        try:
            self._authority.admit(self._token(), Wanted("node:read", "GET", "/v1/status"))
        except (OSError, RonError):
            return False
        return True

    def _is_current(self) -> bool:
        try:
            return inspect(self._token()).kid == self._auth.keys.current.kid
        except (OSError, RonError):
            return False  # somebody removed or damaged it

    def _token(self) -> str:
        return read_private(self.path).decode("ascii", "replace").strip()

    def _issue(self) -> None:
        issued = self._auth.issue(self._authority, [Caveat("scope", "*")], label="admin", own=True)
        # in one step: whoever reads it finds the one before or this one
        write_private(self.path, (issued.token + "\n").encode())
