"""svc-edge, first slice (offline): answers tiles from PMTiles packs and bundled assets, and never goes to a network.

In: a tile's address or an asset's name. Out: an `Asset` with its strong ETag; NotFound for what there is not, and
StoreUnavailable for what a broken pack may have held.
"""
