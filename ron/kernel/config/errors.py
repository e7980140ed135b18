"""The one error of this package. In: what is wrong, where. Out: a line that names key, place and fix."""

from __future__ import annotations

from ron.proto.errors import ErrorCode, RonError


class ConfigError(RonError):
    """The config is wrong.

    `key` is the dotted path (`edge.packs[0]`), empty when the file as a whole is. `source` is where the value came
    from (a file's path, a variable, a flag), empty when plain tables were judged.
    """

    def __init__(self, message: str, *, key: str = "", hint: str | None = None, source: str = "") -> None:
        super().__init__(ErrorCode.BAD_REQUEST, f"{key}: {message}" if key else message, hint=hint)
        self.key = key
        self.source = source

    def from_source(self, source: str) -> ConfigError:
        """The same complaint, which says that the value came from `source`; itself when it already says so."""
        if self.source or not source:
            return self
        named = ConfigError(f"{self.message} (from {source})", hint=self.hint, source=source)
        named.key = self.key
        return named
