"""RandAugment, 3-Augment, colour jitter and random erasing, batched, on the images' device, with own draws per image.

`policy` draws (numpy, the CPU), the other modules compute on pixels (torch, any device), and `augmenter` joins the two.
Written here because batched libraries either draw once for all images or differ from timm's RandAugment, on which the
published recipes rest. `Augmenter` is imported on first use, so that `policy` can check settings without torch.
"""

from typing import Any

__all__ = ["Augmenter"]


def __getattr__(name: str) -> Any:
    if name == "Augmenter":
        from vitkd_ds.data.augment.augmenter import Augmenter

        return Augmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
