"""A replica teacher's linear layers in fp8, through torchao."""

from torch import nn


def quantize_blocks(model: nn.Module) -> None:
    """Put the weights of the linear layers in a model's blocks into fp8 (e4m3), a scale for each output channel, in
    place; their inputs are rounded likewise when they are called, a scale for each token. Embedding, norms, attention's
    softmax and classifier stay as they are.

    Raises:
        ValueError: torchao is not installed, the model has no blocks, or torchao refuses the device that it is on.
    """
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow
        from torchao.quantization.quant_api import quantize_
    except ImportError as error:
        raise ValueError(
            f"teacher.fp8 needs torchao, found {error}: pip install 'vitkd_ds[fp8]', or leave teacher.fp8 off"
        ) from None
    if not isinstance(blocks := getattr(model, "blocks", None), nn.Module):
        raise ValueError(f"teacher.fp8 needs a model with blocks, found {type(model).__name__}: leave teacher.fp8 off")
    try:
        quantize_(blocks, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    except AssertionError as error:
        raise ValueError(f"teacher.fp8 needs a GPU that multiplies in fp8, found that {error}: leave it off") from None
