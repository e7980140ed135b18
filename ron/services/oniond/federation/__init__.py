"""Federation: two nodes that allow each other prove, in zero knowledge, that each holds a capability of the other's.

In: an allow list, holder keys, a way to call a peer's onion. Out: sessions, over which nothing but transport facts is
told. Off unless it is configured. The protocol and its security argument are in docs/federation.rst.
"""
