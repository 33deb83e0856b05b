"""What is found in a damaged checkpoint before anything in it is loaded, and which one is taken in its place."""

import pickle

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


def torn(path):
    (path / STATE).write_bytes((path / STATE).read_bytes()[:-1])


def tampered(path):
    content = bytearray((path / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (path / STATE).write_bytes(content)


def tampered_manifest(path):
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace("large", "other"))


DAMAGE = {
    "torn": (torn, f"{STATE} must have .* bytes, found"),
    "empty": (lambda path: (path / STATE).write_bytes(b""), f"{STATE} must have .* bytes, found 0"),
    "missing": (lambda path: (path / STATE).unlink(), f"{STATE} is missing"),
    "tampered": (tampered, f"{STATE} has changed: its checksum differs"),
    "another file": (lambda path: (path / "mp_rank_01_model_states.pt").touch(), "is not listed in the manifest"),
    "manifest missing": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest torn": (lambda path: (path / "manifest.json").write_text('{"format": 1, '), "manifest.json cannot be"),
    "manifest empty": (lambda path: (path / "manifest.json").write_text(""), "manifest.json cannot be read"),
    "manifest of nonsense": (lambda path: (path / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
    "manifest tampered": (tampered_manifest, "manifest.json has changed: its checksum differs"),
    "of another step": (lambda path: write_manifest(path, {}, {"train_state": {"step": 7}}), "is of step 7"),
    "all": (lambda path: [file.unlink() for file in path.iterdir()] and path.rmdir(), "manifest.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_next_older_one_taken(tmp_path, caplog, kind):
    damage, message = DAMAGE[kind]
    newest = make(tmp_path, 1, 2, 3)
    damage(newest)
    found = newest_whole(find("auto", tmp_path))
    assert found.tag == "step00000002" and found.manifest["train_state"] == {"step": 2}
    said = caplog.text
    assert "step00000003 is damaged and passed over: " in said
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
        torn(tmp_path / "checkpoints" / f"step0000000{step}")
    with pytest.raises(ValueError, match="must hold a whole checkpoint, found step00000002: .*; step00000001: "):
        newest_whole(find("auto", tmp_path))


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


def test_code_in_a_state_file_is_not_run_even_with_a_fitting_manifest(tmp_path, capsys):
    for number, bomb in enumerate(
        (lambda file: torch.save(Bomb(), file), lambda file: pickle.dump(Bomb(), file, protocol=2))
    ):
        write_whole(tmp_path / f"{number}", bomb)
        with pytest.raises(pickle.UnpicklingError):
            load_file(tmp_path / f"{number}")
    assert "boom" not in capsys.readouterr().out
