"""Attention over a `Layout`: CCA (cca), scores computed whole (direct) or in tiles (tiled).

Imports the files beside this folder: layout, layers, precision, sharding.
"""
