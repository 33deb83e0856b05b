"""RandAugment, 3-Augment, colour jitter and random erasing.

Start reading at `augmenter.Augmenter`. `policy` makes the random draws. `operations` and `noise` prepare them for the
compiled code, which runs in the decoder threads (`vitkd_ds/data/beton/csrc/augment.cpp`). `pillow` gives the same bits
with Pillow and timm, for the torchvision backend. Existing libraries do not fit: they either draw from a process-wide
generator or differ from timm's RandAugment, which published recipes use. Nothing is imported here, so that `policy`
checks settings without torch.
"""
