"""torch.compile changes speed alone: what compiled.py observed with the engines as they ship."""

import json
from pathlib import Path

import pytest

from tests.conftest import finish_ranks, start_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WORKER = Path(__file__).with_name("compiled.py")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    finish_ranks(start_ranks(1, WORKER, folder), timeout=500)
    return json.loads((folder / "seen.json").read_text())


def test_a_compiled_student_draws_the_same_masks_and_drop_path_and_has_the_same_losses_in_fp32(seen):
    assert seen["compiled"] == pytest.approx(seen["eager"], rel=1e-5)
    assert len(set(seen["eager"])) == 4


@pytest.mark.parametrize("placement", ["replica", "shard"])
def test_a_smaller_micro_batch_does_not_compile_the_teacher_anew(seen, placement):
    graphs = seen[placement]["graphs"]
    assert graphs[0] > 0 and graphs == [graphs[0]] * 3
    assert seen[placement]["difference"] < 0.1, "bf16 rounding"
