"""Reading images: what an epoch shows in which order, where each image is cut, decoding and augmentation.

Nothing is imported here, so that `vitkd_ds.data.order` or `vitkd_ds.data.beton.format` cost no FFCV import.
"""
