"""Operations that blend an image with a plainer one of itself: Color with its greys, Sharpness with its smoothed twin.

Pillow blends in float32 as plain + factor * (image - plain), clips and truncates; so do we, bit for bit on the CPU. A
compiler that fuses the multiplication with the addition may change a level where the sum is within rounding of a whole
number.
"""

import torch
from torch import Tensor


def planar(pixels_BHWC: Tensor) -> Tensor:
    """Copy images into planes [B, 3, H, W]: arithmetic that treats channels apart is slow on interleaved ones."""
    return pixels_BHWC.permute(0, 3, 1, 2).contiguous()


def grey_levels(planes_BCHW: Tensor) -> Tensor:
    """Convert RGB to grey as Pillow does to L, in 16-bit fixed point: int32 [B, H, W], 0 to 255."""
    red, green, blue = (planes_BCHW[:, channel].int() for channel in range(3))
    return red.mul_(19595).add_(green.mul_(38470)).add_(blue.mul_(7471)).add_(32768).bitwise_right_shift_(16)


def _blend(plain: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Blend float32 images, overwriting `image`: a fresh tensor per step costs more on the CPU than the arithmetic."""
    return image.sub_(plain).mul_(factor).add_(plain).clamp_(0, 255).to(torch.uint8)


def color(pixels_BHWC: Tensor, factors_B: Tensor) -> Tensor:
    """Blend with the image's greys: factor 0 is grey, 1 the image, above 1 more colourful; uint8 to uint8."""
    planes_BCHW = planar(pixels_BHWC)
    grey_B1HW = grey_levels(planes_BCHW)[:, None].float()
    return _blend(grey_B1HW, planes_BCHW.float(), factors_B[:, None, None, None]).permute(0, 2, 3, 1).contiguous()


def sharpness(pixels_BHWC: Tensor, factors_B: Tensor) -> Tensor:
    """Blend with the smoothed image: factor 0 is smooth, 1 the image, above 1 sharper; uint8 to uint8. Smooth is the
    rounded mean of the 3 x 3 neighbours, the centre counting five times; the outermost pixels have no such mean and
    stay."""
    num_images, height, width, channels = pixels_BHWC.shape
    if height < 3 or width < 3:
        return pixels_BHWC.clone()
    rows = pixels_BHWC.view(num_images, height, width * channels)
    wide = rows.to(torch.int16)
    across = (wide[:, :, : -2 * channels] + wide[:, :, channels:-channels]).add_(wide[:, :, 2 * channels :])
    centre = wide[:, 1:-1, channels:-channels]
    total = (across[:, :-2] + across[:, 1:-1]).add_(across[:, 2:]).add_(centre, alpha=4)
    # Rounding by thirteenths never meets a tie: the quotient stays 1/26 away from whole numbers, so float32 is exact.
    smooth = total.float().add_(6.5).mul_(1 / 13).floor_()
    result = rows.clone()
    result[:, 1:-1, channels:-channels] = _blend(smooth, centre.float(), factors_B[:, None, None])
    return result.view(pixels_BHWC.shape)
