"""gateway: the node's front door. HTTP in; the map page, tiles and assets from edge, status and health out.

It decides nothing itself: edge, hello and the node answer through the ports in `ports.py`.
"""
