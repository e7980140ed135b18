"""RustBalance: one onion address before many nodes, with no leader whose end would be the address's end.

In: beats, descriptors and signing rounds from the other nodes of a cluster (`mesh/`); an operator's orders (`api`).
Out: the master address's descriptor on its directories, from whichever node leads (`publishing/`), while every node
runs a head (`heads/`) and keeps the key or a share of it in memory only (`vault/`). `cluster/` decides, purely.
"""
