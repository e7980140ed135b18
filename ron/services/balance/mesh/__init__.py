"""The nodes' full mesh: every node has a link of its own to every other, over mTLS, and all agree on one small book.

In: this node's files (`files.py`), seeds' addresses, messages of the other rooms. Out: `Mesh` and `Book` of `ports.py`.
The protocol, what it protects against and what it does not: docs/mesh.rst.
"""
