"""RandAugment, 3-Augment, colour jitter and random erasing, batched, on the images' device, each image with its draws.

`policy` draws (numpy, on the CPU), the other modules compute on pixels (torch, any device), and `augmenter` joins the
two. Written here because batched libraries either draw once for all images or differ from timm's RandAugment, on which
the published recipes rest. Nothing is imported here, so that `policy` checks settings without torch.
"""
