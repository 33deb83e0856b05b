"""RandAugment, 3-Augment, colour jitter and random erasing.

Start reading at `augmenter.Augmenter`. `policy` draws the operations and their arguments at random. `operations` and
`noise` convert them to the format of the compiled code (`vitkd_ds/data/beton/csrc/augment.cpp`), which runs in the
decoder threads. `pillow` computes bit-identical results with Pillow and timm, for the torchvision backend. Existing
libraries are not used: they either draw from a process-wide random generator, or differ from timm's RandAugment, which
published recipes use. This file imports nothing, so that `policy` can check settings without torch.
"""
