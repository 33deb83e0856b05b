"""Write the rows of a benchmark while it runs, so that a benchmark that is killed keeps what it has measured."""

import json
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON. A process that is killed meanwhile leaves the earlier rows."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(rows, indent=1))
    new.replace(path)
