"""The completion scripts, run in the shells themselves."""

import shlex
import shutil
import subprocess

import pytest

from vitkd_ds import cli
from vitkd_ds.commands.completion import script
from vitkd_ds.recipes import RECIPES

WANTED = {
    "vitkd-ds pa": {"pack"},
    "vitkd-ds pack --qu": {"--quality"},
    "vitkd-ds train --optim.l": {"--optim.lr", "--optim.lr_batch_size"},
    "vitkd-ds train --recipe demo_": {name for name in RECIPES if name.startswith("demo_")},
    "vitkd-ds export a b --format o": {"onnx"},
    "vitkd-ds train --teacher.placement o": {"offload"},
}
"""Line up to the cursor -> completions."""
CALLS = {
    "bash": "COMP_WORDS=({words}); COMP_CWORD={last}; _vitkd_ds; printf '%s\\n' \"${{COMPREPLY[@]}}\" --",
    "zsh": "call() {{ emulate -L sh; COMP_WORDS=({words}); COMP_CWORD={last}; _vitkd_ds;"
    " printf '%s\\n' \"${{COMPREPLY[@]}}\" --; }}; call",
    "fish": "complete -C{line}; echo --",
}


@pytest.mark.parametrize("shell", CALLS)
def test_commands_options_and_values_are_completed(tmp_path, shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    lines = [script(shell, cli.summaries())]
    for line in WANTED:
        words = line.split()
        lines.append(CALLS[shell].format(words=line, last=len(words) - 1, line=shlex.quote(line)))
    (tmp_path / "script").write_text("\n".join(lines))
    done = subprocess.run([shell, "script"], cwd=tmp_path, text=True, capture_output=True)
    assert not done.stderr
    for line, said in zip(WANTED, done.stdout.split("--\n")):
        begun = line.split()[-1]
        # zsh filters the candidates itself, and fish also offers words that contain the letters elsewhere.
        found = {row.partition("\t")[0] for row in said.splitlines()}
        assert {word for word in found if word.startswith(begun)} == WANTED[line], line


def test_every_command_and_setting_is_in_each_script():
    for shell, dashes in {"bash": "--", "zsh": "--", "fish": "-l "}.items():
        text = script(shell, cli.summaries())
        words = [*cli.COMMANDS, f"{dashes}optim.ema_decay", f"{dashes}grid.KEY", f"{dashes}restart_markers"]
        assert [word for word in words if word not in text] == [f"{dashes}grid.KEY"], shell
    with pytest.raises(ValueError, match="SHELL must be bash, zsh or fish, got 'tcsh'"):
        script("tcsh", cli.summaries())
