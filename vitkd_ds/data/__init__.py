"""Image data: sources, .beton files, epoch order, crops, decoding and augmentation.

Start reading at `loader`: its `build_loader` opens the images of one split (module `images`) and returns an
`epochs.Loader`. One of two backends decodes the images: `beton.stream`, which is based on FFCV, or `torchvision`. The
modules `order`, `crops` and `augment` make all random choices, with the random numbers of `draws`. `sources` lists raw
images for packing. This file imports nothing, so importing `vitkd_ds.data.order` or `vitkd_ds.data.beton.format`, for
example, does not import FFCV.
"""
