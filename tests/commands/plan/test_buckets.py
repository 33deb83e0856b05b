"""Predicted gradient buckets against those that DeepSpeed allocates."""

from dataclasses import replace

import pytest
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer, IPGBucket

from tests.commands.plan.test_predict import INPUTS
from vitkd_ds.commands.plan import predict


@pytest.mark.parametrize("overlaps", [False, True])
def test_deepspeed_allocates_the_predicted_buckets_for_a_student_of_any_size(overlaps):
    """DeepSpeed's own code; the copy to send depends on the gradients, which do not exist here."""
    optimizer = object.__new__(DeepSpeedZeroOptimizer)
    bucket = IPGBucket()
    vars(optimizer).update(
        ready_for_gradients=False,
        micro_step_id=0,
        contiguous_gradients=True,
        overlap_comm=overlaps,
        ipg_buckets={torch.float32: bucket},
        reduce_bucket_size=10**6,
        use_grad_accum_attribute=False,
        dtype=torch.bfloat16,
    )
    optimizer.setup_buckets()
    allocated = sum(buffer.numel() * buffer.element_size() for buffer in bucket.buffer)
    inputs = replace(INPUTS, bucket_elements=10**6, trained_params=1000, is_compiled=not overlaps)
    layout = predict.Layout(nodes=1, gpus_per_node=4, micro_batch=1, accumulation=1, placement="replica")
    assert predict.memory_bytes(inputs, layout)["gradient buckets"] == allocated + 4 * 1000
