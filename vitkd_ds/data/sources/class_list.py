"""Read the file of `--classes`, a text file or a .beton that lists the classes."""

from collections import Counter
from pathlib import Path

from vitkd_ds.data.beton.format import SUFFIX, check_is_finished
from vitkd_ds.data.beton.side_file import read_side


def read_classes(file: str) -> tuple[str, ...]:
    """Return the class names in label order, from a text file with one name per line or from a .beton.

    Blank lines of a text file are ignored. The names of a .beton are in the JSON file next to it.

    Raises:
        ValueError: the file cannot be read, lists no class, or lists a class twice.
    """
    path = Path(file)
    if path.suffix == SUFFIX:
        check_is_finished(path)
        return tuple(read_side(path)["classes"])
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--classes is not a readable text file or .beton: {error}. Check the path.") from error
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes:
        raise ValueError(f"{file!r} has no classes. Pass --classes a file with a class name per line.")
    name, count = Counter(classes).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{file!r} lists class {name!r} {count} times. Remove the duplicates.")
    return classes
