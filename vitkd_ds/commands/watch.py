"""Show a run's progress, evaluations and interruptions from its folder, without writing to it."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from vitkd_ds.checkpoint.lock import STALE_S, holder_of
from vitkd_ds.commands.compare.runs import whole_lines
from vitkd_ds.config.metrics import EVALUATED
from vitkd_ds.config.run_folder import CONFIG, DONE, METRICS, SUMMARY, read_json
from vitkd_ds.train.console import Progress, progress_line

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


def watch(run: str) -> dict[str, Any]:
    """Show a run's progress as in its own terminal, until the run is finished. Return the content of summary.json.

    If the folder does not exist yet, or a job has locked it but not yet written config.json, wait for the run to start.
    If the run's job has exited or stopped responding, log this and keep watching, because another job may resume the
    run.

    Raises:
        ValueError: the folder is not a run folder.
    """
    folder = Path(run)
    _wait_for_a_start(folder)
    log = _Growing(Path(run) / METRICS)
    total_steps = _total_steps(folder)
    progress = Progress(total_steps, start_step=0)
    evaluated = -1
    shown: dict[str, Any] = {}
    state = ""
    try:
        while True:
            is_done = (folder / DONE).exists()  # checked before reading the log, so that no line is missed
            lines, is_anew = log.read()
            if is_anew and _total_steps(folder) != total_steps:  # the run was extended
                progress.close()
                total_steps = _total_steps(folder)
                progress = Progress(total_steps, start_step=0)
            newest = next((line for line in reversed(lines) if isinstance(line.get("total"), int | float)), shown)
            for line in lines:
                if EVALUATED in line and line["step"] > evaluated:
                    logger.info("%s", progress_line(line["step"], total_steps, _values(line)))
                    evaluated = line["step"]
                elif line is newest and line != shown:  # a resumed run repeats its earlier lines
                    text = progress_line(line["step"], total_steps, _values(line))
                    progress.show(line["step"], f"total {line['total']:.4g}", text)
                    shown = line
            if is_done:
                return read_json(folder / SUMMARY, {})
            if (now := _state(folder)) != state:
                logger.info("%s", now)
                state = now
            time.sleep(LOOK_EVERY_S)
    finally:
        progress.close()


class _Growing:
    """Reader of a log file that grows, and that is replaced when the run resumes from a checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the complete lines added since the last call, and whether the file was replaced since then.

        After a replacement, return all complete lines of the new file. If the file is missing, return no lines.
        Each call opens the file again, so that a network file system checks its server for changes.
        """
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                is_anew = inode != self._inode
                file.seek(0 if is_anew else self._offset)
                content = file.read()
                content = content[: content.rfind(b"\n") + 1]
                self._inode = inode
                self._offset = (0 if is_anew else self._offset) + len(content)
        except FileNotFoundError:
            return [], False
        return whole_lines(content.decode(errors="replace")), is_anew


def _wait_for_a_start(folder: Path) -> None:
    """Wait until the folder contains a run. Raise ValueError if it contains something else."""
    is_told = False
    if folder.is_file():
        raise ValueError(f"{folder} is not a run folder: it is a file. Pass the --workdir of the run.")
    while not (folder / CONFIG).is_file():
        if folder.exists() and holder_of(folder) is None and any(folder.iterdir()):
            raise ValueError(f"{folder} is not a run folder: it has no {CONFIG}. Pass the --workdir of the run.")
        if not is_told:
            logger.info("no run in %s yet; waiting for it to start. Press Ctrl-C to stop.", folder)
        is_told = True
        time.sleep(LOOK_EVERY_S)


def _total_steps(folder: Path) -> int:
    return read_json(folder / CONFIG, {"plan.total_steps": int})["plan"]["total_steps"]


def _values(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}


def _state(folder: Path) -> str:
    """Return a status line: which job is training the run, or that no job is training it."""
    holder = holder_of(folder)
    if holder is None:
        return f"no job is training {folder}; waiting for it to be resumed"
    name, silent_s, lives = holder
    if lives is False or (lives is None and silent_s > STALE_S):
        return f"{name} has exited or lost contact before {folder} was finished; waiting for it to be resumed"
    return f"{name} is training {folder}"
