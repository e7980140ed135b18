"""The world as a raster pack: from Natural Earth's country shapes to PNG tiles in one PMTiles file.

In: the TopoJSON in `ron/ctl/naturalearth`. Out: tiles z0 to z6, the same bytes on every run and for any number of jobs.
The way of a tile: `topology` decodes, `mercator` projects, `style` colours, `labels` says which names stand where,
`draw` draws a block of tiles at once, `build` shares the blocks out and writes the archive.
"""
