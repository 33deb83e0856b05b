"""Checkpoints and evaluations of an engine whose last updates are still queued on the simulated device."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_flatten

from tests.engine import tiny
from tests.late.device import late_device
from tests.late.orders import in_orders
from tests.late.rig import Rig
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.config.run import CheckpointConfig
from vitkd_ds.engine.state_files import load_file
from vitkd_ds.models.features import tap_features
from vitkd_ds.train.evaluate import evaluate
from vitkd_ds.train.predictions import Predictions

pytestmark = pytest.mark.usefixtures("one_rank")
STATE = TrainState(steps_per_epoch=7, data=1, step=2)


def saved(engine, folder):
    """Save a checkpoint, and return its folder and the content of its files."""
    Saver(folder, CheckpointConfig(), {}).save(engine, STATE)
    checkpoint = folder / "checkpoints" / "step00000002"
    files = {path.name: load_file(path) for path in sorted(checkpoint.glob("*.pt"))}
    return checkpoint, files | {"student": (checkpoint / "student.safetensors").read_bytes()}


def assert_equal(found, expected):
    """Assert that two nested structures have equal tensors."""
    (found, structure), (expected, other) = tree_flatten(found), tree_flatten(expected)
    assert structure == other
    for one, two in zip(found, expected):
        assert torch.equal(one, two) if isinstance(two, torch.Tensor) else type(one) is type(two)
        assert not isinstance(two, (int, float, str, bytes)) or one == two


def evaluated(rig, device):
    """Evaluate the moving average of the weights, with the teacher; return metrics and predictions."""
    student = tiny.make_models()[0].to(device)
    student.load_state_dict(rig.engine.student_weights())
    images_BCHW, targets_BK = rig.images_BCHW, rig.targets_BK
    batches = [(images_BCHW[i : i + 4], targets_BK[i : i + 4].argmax(1)) for i in range(0, 16, 4)]
    predictions = Predictions()
    result = evaluate(
        student,
        SimpleNamespace(epoch=lambda _: (batch for batch in batches)),
        normalization=tiny.NORMALIZATION,
        teachers={"teacher": lambda images: tap_features(rig.teacher, tiny.NORMALIZATION.apply(images, torch.float32))},
        predictions=predictions,
    )
    return result, predictions.result(torch.arange(16).numpy())


@pytest.fixture(scope="module")
def expected(one_rank, tmp_path_factory):
    """Return the checkpoint, its files, an evaluation, and results of a further update, all on the CPU."""
    rig = Rig("cpu").update()
    checkpoint, files = saved(rig.engine, tmp_path_factory.mktemp("cpu"))
    answers = evaluated(rig, "cpu")
    rig.totals.clear()
    rig.outcomes.clear()
    return checkpoint, files, answers, rig.update(steps=1).read(torch.Tensor.detach)


@in_orders(1, many=101)
def test_a_checkpoint_of_queued_updates_has_the_cpus_content(orders, expected, tmp_path):
    for seed in orders:
        with late_device(seed) as device:
            rig = Rig("cuda").update()
            stream = device.order.default
            assert stream.num_done < stream.num_queued or seed % 3
            _, files = saved(rig.engine, tmp_path / f"{seed}")
            rig.update(steps=1)
        assert_equal(files, expected[1])


@in_orders(1, many=101)
def test_an_evaluation_after_queued_updates_has_the_cpus_results(orders, expected):
    for seed in orders:
        with late_device(seed):
            assert evaluated(Rig("cuda").update(), "cuda") == expected[2], seed


@in_orders(1, many=51)
def test_a_restored_engine_continues_with_the_cpus_bits(orders, expected):
    checkpoint, _, _, further = expected
    for seed in orders:
        with late_device(seed) as device:
            rig = Rig("cuda").update(steps=1)
            rig.engine.load(checkpoint)
            rig.totals.clear()
            rig.outcomes.clear()
            assert rig.update(steps=1).read(device.read) == further, seed
