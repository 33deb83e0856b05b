"""`python -m vitkd_ds.commands.report RUN [RUN ...]`: one table of finished runs."""

import json
import sys
from pathlib import Path

HEADER = ("run", "teacher top-1", "student top-1", "top-5", "agreement", "images/s", "time", "ranks")


def table(workdirs: list[str]) -> str:
    """Make a text table with a row per run folder; raises ValueError for a folder without summary.json."""
    rows = [HEADER]
    for workdir in workdirs:
        path = Path(workdir) / "summary.json"
        if not path.is_file():
            raise ValueError(f"{workdir} must be a finished run, found no {path}: train it first")
        s = json.loads(path.read_text())
        # config.json is written when data and engines are ready: training, evaluations and checkpoints count.
        seconds = path.with_name("done").stat().st_mtime - path.with_name("config.json").stat().st_mtime
        percents = [s[key] for key in ("teacher_top1", "student_top1", "student_top5", "agreement")]
        percents = ["-" if value is None else f"{value:.2f} %" for value in percents]
        rows.append((path.parent.name, *percents, f"{s['images_per_s'] or 0:,.0f}", f"{seconds:.0f} s",
                     str(s["world_size"])))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


if __name__ == "__main__":
    print(table(sys.argv[1:]))
