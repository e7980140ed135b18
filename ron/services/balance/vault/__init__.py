"""Who can sign for a master address, and how nodes come to be able to (docs/vault.rst).

In: an operator's orders and approvals, the mesh, the time periods that are due. Out: `ron.tor.descriptor` signers, of
the whole key (`shared`) or of t of n nodes together (`threshold`). Keys and shares are in locked memory, never on disk.
"""
