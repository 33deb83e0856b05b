"""RandAugment, 3-Augment, colour jitter and random erasing of training images, each with its own draws.

`policy` draws, `operations` and `noise` make what the compiled code takes (`vitkd_ds/data/beton/csrc/augment.cpp`, in
the threads that decode), and `pillow` does the same with Pillow and timm for the torchvision backend, bit for bit.
Written here because libraries either draw from a generator of the process or differ from timm's RandAugment, on which
the published recipes rest. Nothing is imported here, so that `policy` checks settings without torch.
"""
