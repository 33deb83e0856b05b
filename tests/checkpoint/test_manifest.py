"""What is found in a damaged checkpoint before anything in it is loaded, and which one is taken in its place."""

import pickle
import shutil

import pytest
import torch

from vitkd_ds.checkpoint.files import write_whole
from vitkd_ds.checkpoint.load import Start, find, newest_whole
from vitkd_ds.checkpoint.manifest import check_files, read_manifest, write_manifest
from vitkd_ds.engine.state_files import load_file

STATE = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def make(folder, *steps):
    for step in steps:
        path = folder / "checkpoints" / f"step{step:08d}"
        path.mkdir(parents=True)
        files = {"a": write_whole(path / "a", lambda file: file.write(b"small"))}
        files[STATE] = write_whole(path / STATE, lambda file: torch.save({"x": torch.arange(5000)}, file))
        write_manifest(path, files, {"train_state": {"step": step}, "layout": {"a": "large"}})
        (folder / "checkpoints" / "latest").write_text(path.name)
    return path


def test_a_whole_checkpoint_is_whole_for_any_number_of_checkers(tmp_path):
    path = make(tmp_path, 1)
    manifest = read_manifest(path)
    assert torch.equal(load_file(path / STATE)["x"], torch.arange(5000))
    for num_parts in (1, 2, 3):
        assert not any(check_files(path, manifest, part=part, num_parts=num_parts) for part in range(num_parts))


def change(name, function):
    """A damage that replaces a file's content by what a function makes of it."""
    return lambda path: (path / name).write_bytes(function((path / name).read_bytes()))


def middle_bit_flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


TORN = change(STATE, lambda content: content[:-1])
MANIFEST = "manifest.json"


DAMAGE = {
    "torn": (TORN, f"{STATE} must have .* bytes, found"),
    "empty": (change(STATE, lambda content: b""), f"{STATE} must have .* bytes, found 0"),
    "missing": (lambda path: (path / STATE).unlink(), f"{STATE} is missing"),
    "tampered": (change(STATE, middle_bit_flipped), f"{STATE} has changed: its checksum differs"),
    "another file": (lambda path: (path / "mp_rank_01_model_states.pt").touch(), "is not listed in the manifest"),
    "manifest missing": (lambda path: (path / MANIFEST).unlink(), "manifest.json is missing"),
    "manifest torn": (change(MANIFEST, lambda content: b'{"format": 1, '), "manifest.json cannot be"),
    "manifest empty": (change(MANIFEST, lambda content: b""), "manifest.json cannot be read"),
    "manifest of nonsense": (change(MANIFEST, lambda content: b"[1]"), "manifest.json cannot be read"),
    "manifest tampered": (
        change(MANIFEST, lambda content: content.replace(b"large", b"other")),
        "manifest.json has changed: its checksum differs",
    ),
    "of another step": (lambda path: write_manifest(path, {}, {"train_state": {"step": 7}}), "is of step 7"),
    "all": (shutil.rmtree, "manifest.json is missing"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_the_next_older_one_taken(tmp_path, caplog, damage, message):
    newest = make(tmp_path, 1, 2, 3)
    damage(newest)
    found = newest_whole(find("auto", tmp_path))
    assert found.tag == "step00000002" and found.manifest["train_state"] == {"step": 2}
    assert "step00000003 is damaged and passed over: " in caplog.text
    with pytest.raises(ValueError, match=message):
        newest_whole(find(str(newest), tmp_path) if newest.exists() else Start(newest.parent, newest.name, True, True))


def test_what_a_file_system_or_a_person_leaves_beside_the_files_is_no_damage(tmp_path):
    path = make(tmp_path, 1)
    (path / ".nfs0000001").touch()
    (path / "notes.txt").write_text("the good one")
    assert newest_whole(find("auto", tmp_path)).tag == path.name


def test_where_none_is_whole_nothing_starts_anew(tmp_path):
    make(tmp_path, 1, 2)
    for step in (1, 2):
        TORN(tmp_path / "checkpoints" / f"step0000000{step}")
    with pytest.raises(ValueError, match="must hold a whole checkpoint, found step00000002: .*; step00000001: "):
        newest_whole(find("auto", tmp_path))


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


def test_code_in_a_state_file_is_not_run_even_with_a_fitting_manifest(tmp_path, capsys):
    for write in (torch.save, lambda bomb, file: pickle.dump(bomb, file, protocol=2)):
        write_whole(tmp_path / "state", lambda file, write=write: write(Bomb(), file))
        with pytest.raises(pickle.UnpicklingError):
            load_file(tmp_path / "state")
    assert "boom" not in capsys.readouterr().out
