"""The file of `--classes`, which gives class names their labels: a text file, or a .beton whose classes are taken."""

from collections import Counter
from pathlib import Path

from vitkd_ds.data.beton.format import SUFFIX
from vitkd_ds.data.beton.side_file import read_side


def read_classes(file: str) -> tuple[str, ...]:
    """Read class names in label order: a name per line, blank lines left out, or those in the side file of a .beton.
    Raises ValueError if the file cannot be read, names no class, or names one twice."""
    path = Path(file)
    if path.suffix == SUFFIX:
        return tuple(read_side(path)["classes"])
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes must be a text file or a .beton, found {error}: check the path") from error
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes:
        raise ValueError(f"{file!r} must name a class per line, found none: give another file with --classes")
    name, count = Counter(classes).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{file!r} must name each class once, found {name!r} {count} times: correct it")
    return classes
