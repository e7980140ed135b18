"""A node's own tor with its throw-away onion: what visitors of a master address really reach.

In: a tor's control connection, the master addresses, where visitors are to be sent; `serve` and `ghost`. Out: the
onion's own descriptor, of which publishers take the introduction points, and a report: mode, health, siege, sessions.
"""
