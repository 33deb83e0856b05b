"""Images: packing a folder into a .beton, and the sharded, reproducible FFCV loader that reads it.

Nothing is imported here, so that `vitkd_ds.data.order` or `vitkd_ds.data.beton.format` cost no FFCV import.
"""
