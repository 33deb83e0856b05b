"""Image data: sources, .beton files, epoch order, crops, decoding and augmentation.

Start reading at `loader`. `loader.build_loader` opens one split (`images`) in a backend (`beton.stream` on FFCV, or
`torchvision`) and returns an `epochs.Loader`. `order`, `crops` and `augment` make all random choices from keys in
`draws`. `sources` lists raw images for packing. Nothing is imported here, so that `vitkd_ds.data.order` or
`vitkd_ds.data.beton.format` do not import FFCV.
"""
