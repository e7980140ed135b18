"""A private Tor network over several hosts: planned and keyed in one place, carried to the hosts as bundles (issue 4).

In: which authority and relay runs where. Out: a bundle per node and one for clients, a manifest without secrets, and a
vault of authority identity keys that never leaves the operator.
"""
