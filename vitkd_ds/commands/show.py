"""Draw a grid of training images after cropping, augmentation and mixing, to inspect before a long run.

The images are the first 32 that a run with this seed and micro-batches of 32 trains on.
"""

import logging
import subprocess
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vitkd_ds.commands.early import check_picture
from vitkd_ds.config.run import Run
from vitkd_ds.data.images import open_images
from vitkd_ds.data.loader import build_loader
from vitkd_ds.models import build
from vitkd_ds.train.mixing import mix_step

logger = logging.getLogger(__name__)

ROWS = 4
COLUMNS = 8
CAPTION_LINES = 2
LINE_PIXELS = 12
BASELINE_PIXELS = 9
"""Caption lines per image, pixels per line, and pixels from the top of a line to its baseline."""
FONT_PIXELS = 10
NO_CHARACTER = "\U0010ffff"
"""A character that no font has, so its glyph is the font's box for missing characters."""
MIN_CELL_PIXELS = 128
"""Images of fewer pixels per side are enlarged by an integer factor."""
MIN_PART = 0.01
"""Captions leave out labels with a target value of at most this."""


def show(run: Run, dst: Path) -> Path:
    """Write a PNG with a grid of augmented and mixed training images to `dst`, and return `dst`.

    An image's caption is its class name. The caption of an image mixed from two classes has both names, with their
    target values.

    Args:
        run: settings of a run. Of these, data.train, student, augment, losses and seed determine the images.
        dst: the PNG. An existing file is replaced.

    Raises:
        ValueError: the data does not fit the run, or `dst` is not a .png.
    """
    check_picture(dst)
    images = open_images(run.data, split="train", seed=run.seed, micro_batch_size=1)
    size = min(ROWS * COLUMNS, len(images.chosen))
    statistics = build.statistics_of(run.student, run.teachers)
    loader = build_loader(
        run.data, split="train", micro_batch_size=size, seed=run.seed, augment=run.augment, statistics=statistics
    )
    # Label smoothing would only add a small constant to every target, so captions are taken without it.
    unsmoothed = replace(run, losses=run.losses.without_label_smoothing())
    with closing(loader.epoch(0)) as micro_batches:
        images_BCHW, targets_BK = mix_step(unsmoothed, *next(micro_batches), step=0, place=0)
    pixels_BHWC = images_BCHW.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    captions = [_caption(target_K, loader.classes) for target_K in targets_BK]
    _grid(pixels_BHWC, captions).save(dst)
    return dst


def _caption(target_K: torch.Tensor, classes: tuple[str, ...]) -> list[str]:
    if not classes:
        return [""]
    largest = zip(*(found.tolist() for found in target_K.topk(min(CAPTION_LINES, len(classes)))), strict=True)
    shares = [(part, one_line(classes[label])) for part, label in largest if part > MIN_PART]
    return [f"{part:.2f} {name}" for part, name in shares] if len(shares) > 1 else [shares[0][1]]


def one_line(name: str) -> str:
    """Escape characters that Pillow cannot draw: newlines, other control characters and bytes outside UTF-8."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)


def _grid(pixels_BHWC: np.ndarray, captions: list[list[str]]) -> Image.Image:
    """Return the images in rows, each with its caption below."""
    size = pixels_BHWC.shape[1]
    cell = size * max(1, -(-MIN_CELL_PIXELS // size))
    row_pixels = cell + CAPTION_LINES * LINE_PIXELS
    canvas = Image.new("RGB", (COLUMNS * cell, ROWS * row_pixels), "white")
    draw = ImageDraw.Draw(canvas)
    font = find_font(["…", *(line for lines in captions for line in lines)])
    for number, (pixels_HWC, lines) in enumerate(zip(pixels_BHWC, captions, strict=True)):
        left, top = number % COLUMNS * cell, number // COLUMNS * row_pixels
        canvas.paste(Image.fromarray(pixels_HWC).resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(lines):
            foot = (left + 1, top + cell + line * LINE_PIXELS + BASELINE_PIXELS)
            draw.text(foot, _fitting(text, lambda shown: font.getlength(shown) < cell), "black", font, anchor="ls")
    return canvas


def _fitting(text: str, fits: Callable[[str], bool]) -> str:
    """Return the text if it fits, else its longest beginning that fits, followed by an ellipsis."""
    if fits(text):
        return text
    while text and not fits(f"{text}…"):
        text = text[:-1]
    return f"{text}…"


def find_font(texts: Iterable[str]) -> ImageFont.FreeTypeFont:
    """Return a font with all characters of the texts: Pillow's default font, or another one that fontconfig finds.

    If no font has them all, return Pillow's default font, and warn about the characters that it draws as boxes.
    """
    characters = sorted(set().union(*texts))
    default = ImageFont.load_default(FONT_PIXELS)
    missing = _missing_from(default, characters)
    if not missing:
        return default
    for file in _files_with(characters):
        with suppress(OSError):  # bitmap fonts with one fixed size
            font = ImageFont.truetype(file, FONT_PIXELS)
            if not _missing_from(font, characters):
                return font
    logger.warning(
        "no font has the characters %s, so boxes replace them. Install fontconfig and a font with these characters, "
        "such as fonts-noto-cjk.",
        " ".join(missing),
    )
    return default


def _files_with(characters: Iterable[str]) -> list[str]:
    """Return the font files that have all of the characters, according to fontconfig; [] if it is not installed."""
    pattern = f":charset={' '.join(f'{ord(character):x}' for character in characters)}"
    words = ["fc-list", "--format", "%{file}\n", pattern]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, text=True, errors="surrogateescape", timeout=60)
        return sorted(done.stdout.splitlines())
    return []


def _missing_from(font: ImageFont.FreeTypeFont, characters: Iterable[str]) -> list[str]:
    box = bytes(font.getmask(NO_CHARACTER))
    return [character for character in characters if bytes(font.getmask(character)) == box]
