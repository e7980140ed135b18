"""svc-oniond, first slice: every app gets an onion address of its own on the private network.

In: an app's name and the local ports it wants reachable. Out: a v3 address that survives restarts of tor and of us; the
key stays in a 0600 file, or only in memory in amnesia mode.
"""
