"""Certificates of a test CA, as files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ron.crypto import x509

CA = x509.init_ca("test CA")
OTHER_CA = x509.init_ca("test CA")


def put(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """As every careful tool does it: the new file beside the old one, then renamed."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.chmod(mode)
    temporary.replace(path)
    return path


class Folder:
    """A CA's files and its nodes'."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.ca = put(path / "ca.pem", x509.certificate_pem(CA.certificate))
        self.other_ca = put(path / "other-ca.pem", x509.certificate_pem(OTHER_CA.certificate))

    def node(self, name: str, ca: x509.Keyed = CA, *, file: str | None = None, **options: Any) -> tuple[Path, Path]:
        """Paths of a new certificate and key for `name`."""
        options = {"dns": ["localhost"], "addresses": ["127.0.0.1"], **options}
        issued = x509.issue(ca, name, **options)
        stem = file or name
        return (
            put(self.path / f"{stem}.pem", x509.certificate_pem(issued.certificate)),
            put(self.path / f"{stem}.key", x509.key_pem(issued.key)),
        )
