"""The audit log of the key service, as a transparency log: what was signed, by which key, for whom, and in what order.

In: an `AuditEntry` for each operation. Out: its place in an RFC 9162 tree, once it is on disk; signed checkpoints
(C2SP), proofs for whoever wants to check, and a refusal to go on when the log is not what it was.
"""

from ron.services.kms.audit.log import Settings, TransparencyLog
from ron.services.kms.audit.meters import Meters
from ron.services.kms.audit.shelf import DiskShelf, MemoryShelf, Shelf

__all__ = ["DiskShelf", "MemoryShelf", "Meters", "Settings", "Shelf", "TransparencyLog"]
