"""tor as we use it: run and watch processes, drive them over the ControlPort, build a private network, publish onions.

In: a folder, a role, ports to expose. Out: running tors that are restarted when they die, and onion addresses.
Nothing here ever relays for the public network.
"""
