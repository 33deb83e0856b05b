"""slurm/stage.sh: a copy is complete or absent, and a node that cannot copy logs the reason."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ROOT
from tests.slurm.stubs import run_script

pytestmark = pytest.mark.slow

DEMO = ["--recipe=demo", "--debug"]


@pytest.fixture
def beton(tmp_path):
    """A file on the shared file system, with its side file."""
    path = tmp_path / "a folder with spaces" / "train.beton"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 1000)
    path.with_name("train.beton.json").write_text('{"classes": []}')
    return path


def put(tmp_path, name, text):
    """A program that shadows the system's one in the returned PATH."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "bin" / name).chmod(0o755)
    return f"{tmp_path}/bin:/usr/bin:/bin"


def stage(beton, copy, check=True, **environ):
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "stage.sh", beton, copy], text=True, capture_output=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "SLURMD_NODENAME": "n1"} | environ,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_copy_has_its_side_file_and_is_created_once(beton, tmp_path):
    copy = tmp_path / "scratch" / "deep" / "train.beton"
    first = stage(beton, copy)
    assert copy.read_bytes() == beton.read_bytes() and "copied to" in first.stderr
    assert copy.with_name("train.beton.json").read_text() == '{"classes": []}'
    made = copy.stat().st_mtime_ns
    again = stage(beton, copy)
    assert again.stdout == first.stdout and "already exists" in again.stderr and copy.stat().st_mtime_ns == made
    assert not list(copy.parent.glob("*.part"))


def test_a_damaged_or_outdated_copy_is_replaced(beton, tmp_path):
    copy = tmp_path / "train.beton"
    stage(beton, copy)
    content = bytearray(beton.read_bytes())
    for damage in (lambda: copy.write_bytes(content[:-1]), lambda: copy.write_bytes(content[:-1] + b"x"),
                   copy.unlink, lambda: copy.with_name("train.beton.receipt").write_text("")):  # fmt: skip
        damage()
        assert "copied to" in stage(beton, copy).stderr and copy.read_bytes() == beton.read_bytes()
    beton.write_bytes(content[::-1])
    assert "copied to" in stage(beton, copy).stderr and copy.read_bytes() == content[::-1]
    times = beton.stat().st_atime_ns, beton.stat().st_mtime_ns
    beton.write_bytes(content)
    os.utime(beton, ns=times)
    assert "copied to" in stage(beton, copy).stderr and copy.read_bytes() == content, "its ctime differs"


def test_nothing_is_written_through_another_users_link_or_folder(beton, tmp_path):
    shared, theirs = tmp_path / "scratch", tmp_path / "theirs"
    for folder in (shared, theirs):
        folder.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(theirs)
    (shared / "dangling").symlink_to(theirs / "new")
    (shared / "file").touch()
    for name in ("link", "dangling", "file"):
        done = stage(beton, shared / name / "x.beton", check=False)
        assert done.returncode == 1 and "must be a folder of this user, got" in done.stderr, done.stderr
    (shared / "open").mkdir()
    if os.geteuid() == 0:
        os.chown(shared / "open", 65534, 65534)
        done = stage(beton, shared / "open" / "x.beton", check=False)
        assert done.returncode == 1 and "got directory of nobody" in done.stderr, done.stderr
        os.chown(shared, 65534, 65534)
        assert "Make it root's or yours" in stage(beton, shared / "own" / "x.beton", check=False).stderr
        os.chown(shared, 0, 0)
    assert not any(theirs.iterdir()) and not any((shared / "open").iterdir())
    stage(beton, shared / "own" / "x.beton")
    assert (shared / "own").stat().st_mode & 0o777 == 0o700
    shared.chmod(0o777)
    assert "with the sticky bit" in stage(beton, shared / "other" / "x.beton", check=False).stderr


def test_jobs_that_start_together_on_a_node_make_one_copy(beton, tmp_path):
    with ThreadPoolExecutor(4) as jobs:
        done = list(jobs.map(stage, [beton] * 4, [tmp_path / "train.beton"] * 4))
    assert sorted("copied to" in each.stderr for each in done) == [False, False, False, True]


def test_too_little_space_is_detected_before_copying(tmp_path):
    beton = tmp_path / "huge.beton"
    with beton.open("wb") as file:
        file.truncate(2**43)  # a sparse file: 8 TiB that take no space
    done = stage(beton, tmp_path / "scratch" / "huge.beton", check=False)
    assert done.returncode == 1 and f"must have {2**43 + 2**30} bytes free for {beton}, got" in done.stderr
    assert not list((tmp_path / "scratch").glob("huge.beton*[!k]")), "only the lock"


def test_leftovers_of_earlier_starts_are_removed_before_the_space_check(beton, tmp_path):
    copy = tmp_path / "scratch" / "train.beton"
    stage(beton, copy)
    copy.with_name("train.beton.part").write_bytes(b"left by SIGKILL")
    beton.write_bytes(b"newer")
    stage(beton, copy, PATH=put(tmp_path, "df", f'ls "{copy.parent}" >"{tmp_path}/seen"; exec /usr/bin/df "$@"'))
    assert (tmp_path / "seen").read_text().split() == ["train.beton.json", "train.beton.lock"]
    assert copy.read_bytes() == b"newer"


def test_a_wrong_copy_is_not_published(beton, tmp_path):
    copy = tmp_path / "train.beton"
    for text, message in (
        ('/usr/bin/tee "$1"; printf x | dd of="$1" seek=9 bs=1 conv=notrunc status=none', "in size or checksum"),
        ('head -c 100 >"$1"; exit 1', "could not copy"),
    ):
        done = stage(beton, copy, check=False, PATH=put(tmp_path, "tee", text))
        assert done.returncode == 1 and message in done.stderr
        assert not copy.exists() and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("keys", [["data.train"], ["data.train", "data.val"]], ids=["training", "both"])
def test_ranks_use_copies_of_each_file_once_every_node_has_them(beton, tmp_path, keys):
    options = [f"--{key}={beton}" for key in keys]
    ended = run_script(tmp_path, *DEMO, *options, done=True, STAGE_DIR=str(tmp_path / "scratch"))
    assert ended.code == 0, ended.log
    (copy,) = (tmp_path / "scratch").glob("vitkd_ds-*/**/train.beton")
    copies = [f"--{key}={copy}" for key in keys]
    assert ended.train[-2 * len(keys) :] == [*options, *copies], "later options win"
    assert copy.read_bytes() == beton.read_bytes() and "staged on every node" in ended.log
    assert ended.log.count("copied to") == 1 and "already exists" not in ended.log
    flags = ended.of("srun")[1]["srun"]
    assert flags[:3] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"], "once per node"


def test_if_a_node_cannot_copy_ranks_read_shared_files_and_the_log_says_so(beton, tmp_path):
    options = [*DEMO, f"--data.train={beton}"]
    for unwritable in ("/proc/scratch", str(beton)):
        ended = run_script(tmp_path, *options, STAGE_DIR=unwritable, checkpoint="step1", SLURMD_NODENAME="n2")
        assert ended.train[-1] == f"--data.train={beton}"
        assert "WARNING: n2 cannot stage" in ended.log and "WARNING: NOT STAGED" in ended.log
    ended = run_script(tmp_path, *DEMO, done=True, STAGE_DIR="/proc/scratch")
    assert ended.train[-1] == "--debug" and "STAGED" not in ended.log
