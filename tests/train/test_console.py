"""Console output: on a terminal a bar that messages do not break, elsewhere an occasional line."""

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from tests.conftest import ROOT
from vitkd_ds.train import console

PROGRAM = """
import logging, time
from vitkd_ds.train import console
console.install()
console.install()
progress = console.Progress(30, start_step=20)
for step in range(21, 31):
    time.sleep(0.03)
    progress.show(step, "total 1.5", f"step {step}/30")
    if step == 25:
        logging.getLogger("vitkd_ds.models.build").warning("a message of %d words", 5)
progress.close()
logging.getLogger("vitkd_ds.train.loop").info("the end")
"""
COMMAND = [sys.executable, "-c", PROGRAM]


def rows_of(written):
    rows, column = [""], 0
    for letter in written:
        if letter == "\r":
            column = 0
        elif letter == "\n":
            rows.append("")
        else:
            rows[-1] = rows[-1][:column].ljust(column) + letter + rows[-1][column + 1 :]
            column += 1
    return [row.rstrip() for row in rows]


def test_a_terminal_shows_a_bar_to_the_end_and_messages_on_separate_lines():
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(COMMAND, cwd=ROOT, stderr=its)
    os.close(its)
    written = b""
    with suppress(OSError):  # Linux raises this at the end
        while read := os.read(ours, 4096):
            written += read
    assert process.wait(60) == 0
    os.close(ours)
    text = written.decode()
    message, bar, end, *rest = rows_of(text)
    assert message == "a message of 5 words" and end == "the end" and rest == [""], text
    assert "100%" in bar and "30/30" in bar and "total 1.5" in bar and "step 30/30" not in text
    assert "20/30" in text, "it starts at the run's first step"


@pytest.mark.parametrize("rank, lines", [
    (None, "step 21/30\na message of 5 words\nstep 30/30\nthe end\n"), ("1", "a message of 5 words\n"),
], ids=["alone", "rank 1"])  # fmt: skip
def test_a_file_gets_plain_lines_and_only_warnings_from_ranks_other_than_0(rank, lines):
    environ = {key: text for key, text in os.environ.items() if key != "RANK"} | ({"RANK": rank} if rank else {})
    done = subprocess.run(COMMAND, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", lines)


def test_progress_lines_appear_at_most_every_ten_seconds_and_at_the_end(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="vitkd_ds")
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now.s))
    progress = console.Progress(100, start_step=3)
    for step, s in ((4, 0.1), (5, 9), (6, 10.2), (7, 20), (8, 21), (99, 22), (100, 23)):
        now.s = 1000 + s
        progress.show(step, "", f"step {step}")
    assert caplog.messages == ["step 4", "step 6", "step 8", "step 100"]


def test_a_message_during_a_bar_on_a_broken_pipe_is_dropped(monkeypatch):
    reader, writer = os.pipe()
    with open(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        bar = tqdm(total=2, file=stream)
        os.close(reader)
        console._Handler().handle(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "lost"}))
        tqdm._instances.remove(bar)
        with suppress(BrokenPipeError):
            stream.close()


STREAMS = """
import os, signal, sys
from vitkd_ds.train import console, signals
console.install()
signals.listen()
with open(sys.argv[1], "w") as file:
    os.kill(os.getpid(), signal.SIGUSR1)
    print("a line of a library", file=sys.stderr, flush=True)
    progress = console.Progress(2, start_step=0)
    progress.show(2, "", "step 2/2")
    os.system("echo a line of a child >&2")
    console.write_now("now")
print("went on after", signals.received())
"""


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "0<&- 2>&-", "2> >(exec head -c 0)", "2>/dev/null"])
def test_printing_never_ends_a_run_or_writes_to_another_file(tmp_path, stderr):
    """The stream is full, closed from the start, a broken pipe, or intact."""
    command = f'exec "$0" -c "$1" "$2" {stderr}'
    words = ["bash", "-c", command, sys.executable, STREAMS, tmp_path / "checkpoint"]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "went on after SIGUSR1\n")
    assert (tmp_path / "checkpoint").read_text() == ""
