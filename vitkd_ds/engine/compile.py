"""torch.compile options for each choice of `Run.compile`."""

from typing import Any

from torch._inductor import list_mode_options

MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "reduce-overhead"}
"""torch.compile's mode for each choice. torch's mode max-autotune is not used, because it also records CUDA graphs."""


def compile_options(choice: str, *, keeps_addresses: bool = True) -> dict[str, Any]:
    """Return torch.compile's `options` for a value of `--compile` other than "off". Do not also pass `mode`.

    Args:
        keeps_addresses: whether the weights stay at fixed addresses. Pass False if ZeRO gathers them to a new address
            each time. A CUDA graph would then first copy all weights, so "default" replaces "reduce-overhead".
    """
    return list_mode_options(MODES[choice if keeps_addresses or choice != "reduce-overhead" else "default"])
