"""v3 onion service descriptors that we make ourselves: one address in front of many backends (rend-spec-v3 §2).

In: a consensus, descriptors of backends, whoever signs for the master address. Out: descriptors that tor's
directories and clients take as any service's own, and which directories are to have them. No sockets, no timers.
"""
