"""slurm/pack_imagenet.sh: without a cluster, and on a real Slurm with a few photographs."""

import numpy as np
import pytest
from PIL import Image

from tests.slurm.conftest import until_completed
from tests.slurm.stubs import run_script
from vitkd_ds.data.beton.side_file import read_side

pytestmark = pytest.mark.slow


@pytest.fixture
def packs(tmp_path):
    (tmp_path / "src" / "train").mkdir(parents=True)
    folders = [tmp_path / "src", tmp_path / "data"]
    return lambda *words, **told: run_script(tmp_path, *folders, *words, script="pack_imagenet.sh", **told)


def packed(ended):
    return [note["python"][3:] for note in ended.of("python")]


def test_both_splits_are_packed_by_the_same_python(packs, tmp_path):
    ended = packs(done=True)
    assert ended.code == 0 and not ended.is_requeued, ended.log
    assert f"command: vitkd-ds pack {tmp_path}/src {tmp_path}/data" in ended.log.splitlines()[0]
    assert packed(ended) == [
        [f"{tmp_path}/src/{split}", f"{tmp_path}/data/imagenet_{split}.beton", "--passthrough", *more]
        for split, more in (("train", ["--shuffle"]), ("val", []))
    ]
    assert all(note["srun"][:2] == ["--nodes=1", "--ntasks=1"] for note in ended.of("srun"))
    assert packed(packs()) == [], "existing files are left alone"


def test_options_override_defaults_val_keeps_its_bytes_and_tars_get_their_labels(packs, tmp_path):
    (tmp_path / "src" / "train").rmdir()
    for_both = ["--workers", "3", "--skip_bad"]
    options = ["--short_side=256", *for_both, "--quality", "80", "--shuffle", "--write_mode", "jpg"]
    train, val = packed(packs(*options, done=True))
    assert train[0] == f"{tmp_path}/src/ILSVRC2012_img_train.tar" and train[2:] == options
    assert val[2:] == ["--labels", f"{tmp_path}/src/ILSVRC2012_devkit_t12.tar.gz", "--passthrough", *for_both]


ENDS = {
    "stop": ({"signal": "USR1", "code": 1}, True, 0),
    "saved stop": ({"signal": "TERM", "code": 1, "checkpoint": "images"}, True, 0),
    "scancel": ({"signal": "USR1", "code": 1, "state": "CANCELLED"}, False, 0),
    "TERM before Python listens": ({"code": 143, "MAX_FAILURES": "0"}, True, 0),
    "failure after progress": ({"code": 1, "checkpoint": "images"}, True, 0),
    "last failure": ({"code": 1, "checkpoint": "images", "MAX_FAILURES": "0"}, False, 1),
    "failure without progress": ({"code": 1}, False, 1),
    "refused": ({"code": 2, "checkpoint": "images"}, False, 2),
}


@pytest.mark.parametrize("found, is_requeued, code", ENDS.values(), ids=ENDS)
def test_the_job_is_requeued_after_a_stop_or_progress(packs, found, is_requeued, code):
    ended = packs(**found)
    assert (ended.is_requeued, ended.code) == (is_requeued, code), ended.log
    assert len(packed(ended)) == 1, "no second split after a stop"


def test_a_stop_between_the_splits_is_followed_by_another_start(packs):
    ended = packs(done=True, signal="USR1")
    assert len(packed(ended)) == 1 and ended.is_requeued and "imagenet_train.beton is packed" in ended.log


def test_restart_is_for_the_first_start_only(packs):
    assert packed(packs("--restart", "--shuffle", signal="USR1"))[0][2:] == ["--restart", "--shuffle"]
    train, val = packed(packs("--restart", "--shuffle", SLURM_RESTART_COUNT="1", done=True))
    assert (train[2:], val[2:]) == (["--shuffle"], ["--passthrough"])


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_folder_of_photographs_is_packed_across_a_stop_by_usr1(cluster, tmp_path):
    numbers = np.random.default_rng(0)
    for split, count in (("train", 600), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "src" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = Image.fromarray(numbers.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                coarse.resize((640, 480)).save(folder / f"{i}.jpg")
    options = ["--short_side=400", "--workers=1"]
    job = cluster.submit("slurm/pack_imagenet.sh", tmp_path / "src", tmp_path / "data", *options)
    partial = tmp_path / "data" / ".imagenet_train.beton.partial"
    cluster.until(lambda: list(partial.glob("[0-9]*.json")), "images are packed", 120, job)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.until_logged(job, "requeue: the next start continues from train has", timeout_s=60)
    until_completed(cluster, job)
    assert cluster.job(job)["Restarts"] == "1", cluster.log(job)
    assert "continuing" in cluster.log(job), "resumed from the finished parts"
    for split, count in (("train", 1200), ("val", 6)):
        assert read_side(tmp_path / "data" / f"imagenet_{split}.beton")["lengths"].size == count
