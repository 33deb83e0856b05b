"""Run on each of two ranks by test_slow_evaluation.py: train.py, with evaluations that take long."""

import sys
import time

from vitkd_ds import cli
from vitkd_ds.train import evaluate

count = evaluate._count


def slow_count(*args):
    print("evaluating", flush=True)
    time.sleep(1)
    return count(*args)


evaluate._count, evaluate.MICRO_BATCHES_PER_LOOK = slow_count, 1
sys.argv[0] = "train.py"
cli.train_main()
