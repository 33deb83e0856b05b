"""Both models see the same mixed images: what same_images.py observed in one update."""

import json
from pathlib import Path

from tests.conftest import finish_ranks, start_ranks

WORKER = Path(__file__).with_name("same_images.py")


def test_teacher_and_student_get_the_same_mixed_images_in_each_micro_batch_of_a_step(tmp_path, small_beton, demo_cache):
    finish_ranks(start_ranks(1, WORKER, small_beton, tmp_path))
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen == {"calls": [2, 2], "same": [True] * 2, "mixed": [True] * 2, "soft targets": [True] * 2}
