"""torch.compile options for each choice of `Run.compile`."""

from typing import Any

from torch._inductor import list_mode_options

MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "reduce-overhead"}
"""torch.compile mode for each choice; torch's own max-autotune would also record CUDA graphs."""


def compile_options(choice: str, *, keeps_addresses: bool = True) -> dict[str, Any]:
    """Return `options` for torch.compile, which accepts no `mode` with them. The choice must not be "off".

    Args:
        keeps_addresses: the weights stay at fixed addresses. If ZeRO gathers them to a new address each time, a CUDA
            graph would first copy them all, so reduce-overhead falls back to default.
    """
    return list_mode_options(MODES[choice if keeps_addresses or choice != "reduce-overhead" else "default"])
