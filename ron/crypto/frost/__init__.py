"""Threshold Ed25519 (RFC 9591, docs/threshold.rst): a key that t of n nodes use together and none of them ever holds.

`keys` the group's public key and one member's share; `signing` RFC 9591's own functions; `session` one signature over a
network, as messages; `blinding` the same key as tor blinds it for a time period; `dkg` how a key is born in shares;
`resharing` how shares change while the key stays. Nothing here opens a socket, sleeps or writes a file.
"""
