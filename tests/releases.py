"""pytest plugin: skip tests that cannot pass with some release of torch, each with its reason."""

import pytest
import torch

FP8 = "torchao's fp8 needs a GPU with torch 2.11"
THREADS = "the helper of torch 2.11 that runs ranks as threads fails"
SKIPPED = {
    "2.11": {
        "tests/engine/test_fp8.py::test_only_the_blocks_linear_layers_are_in_fp8_and_the_outputs_change_little": FP8,
        "tests/engine/test_fp8.py::test_a_run_logs_the_change_in_outputs_and_learns_from_the_fp8_teacher": FP8,
    },
}
"""Release of torch -> test -> reason."""


def skipped(release: str) -> dict[str, str]:
    """Return the tests to skip with a release such as 2.11.0+cu130, with their reasons."""
    return SKIPPED.get(".".join(release.split(".")[:2]), {})


def pytest_collection_modifyitems(items):
    """Mark the tests that this release of torch fails."""
    reasons = skipped(torch.__version__)
    for item in items:
        if reason := reasons.get(item.nodeid.partition("[")[0]):
            item.add_marker(pytest.mark.skip(reason=reason))
