"""A font that has all characters of some text: Pillow's own, or else one that fontconfig knows on this machine.

A font draws a box for a character that it lacks, the same for all of them. That box is had from U+10FFFF, which is no
character, so a character whose picture is the box is missing. (The letter-like U+25A1 may be taken for missing too.)
"""

import logging
import shutil
import subprocess
from collections.abc import Iterable

from PIL import ImageFont

logger = logging.getLogger(__name__)

NO_CHARACTER = "\U0010ffff"
PLAIN_STYLES = ("Regular", "Book", "Roman", "Normal", "Medium")
"""What families call the style that is neither bold nor slanted."""
MOST_NAMED = 20
"""Characters in a message."""
PATIENCE_S = 60
"""Seconds for fontconfig, which reads all fonts of a machine when it has no cache."""


def find_font(texts: Iterable[str], *, size: float = 10) -> ImageFont.FreeTypeFont:
    """Find a font with all characters of the texts; where there is none, a warning names those that the default font,
    which is returned, draws as boxes.

    Args:
        size: height in pixels.
    """
    characters, default = sorted(set().union(*texts)), ImageFont.load_default(size)
    missing = missing_from(default, characters)
    if not missing:
        return default
    for file, index in _fonts_with(characters):
        try:
            font = ImageFont.truetype(file, size, index)
            if not missing_from(font, characters):
                return font
        except OSError:  # a font of pictures, or of a fixed size
            continue
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    logger.warning(
        "one font must have all characters, found none that has %s%s: boxes stand in their place; install fontconfig "
        "and a font with these characters, such as fonts-noto-cjk", " ".join(missing[:MOST_NAMED]), more,
    )  # fmt: skip
    return default


def missing_from(font: ImageFont.FreeTypeFont, characters: Iterable[str]) -> list[str]:
    """Those of the characters that a font draws as it draws what is no character."""
    box = _picture(font, NO_CHARACTER)
    return [character for character in characters if _picture(font, character) == box]


def _picture(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _fonts_with(characters: Iterable[str]) -> list[tuple[str, int]]:
    """File and number in the file of each font that has the characters, for fontconfig; plain styles first."""
    program = shutil.which("fc-list")
    if program is None:
        return []
    pattern = f":charset={' '.join(f'{ord(character):x}' for character in characters)}"
    try:
        options = {"capture_output": True, "text": True, "errors": "surrogateescape", "timeout": PATIENCE_S}
        done = subprocess.run([program, "--format", "%{file}\t%{index}\t%{style}\n", pattern], **options)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [row.split("\t") for row in done.stdout.splitlines() if row.count("\t") == 2]
    rows.sort(key=lambda row: (row[2] not in PLAIN_STYLES, row[0], int(row[1])))
    return [(file, int(index) & 0xFFFF) for file, index, _ in rows]  # the higher bits number a font's variations
