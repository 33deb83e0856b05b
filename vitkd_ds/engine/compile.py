"""What each choice of `Run.compile` means to torch.compile."""

from typing import Any

from torch._inductor import list_mode_options

MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "reduce-overhead"}
"""The mode of torch.compile for each choice: its own max-autotune would record CUDA graphs too."""


def compile_options(choice: str, *, keeps_addresses: bool = True) -> dict[str, Any]:
    """The inductor options of a choice that is not off, which is `torch.compile(options=...)`; it takes no mode beside.

    Args:
        keeps_addresses: the weights stay where they are. A CUDA graph of weights that ZeRO gathers anew, each time
            elsewhere, would copy them all first, so reduce-overhead is then the default.
    """
    return list_mode_options(MODES[choice if keeps_addresses or choice != "reduce-overhead" else "default"])
