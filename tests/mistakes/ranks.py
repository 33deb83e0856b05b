"""Removed collectives: one rank then knows or does something that the others do not."""

LOOP = "train/test_loop.py::"
SEEN = f"{LOOP}test_a_rank_that_does_not_see_the_lock_of_rank_0_ends_all_before_anything_is_built"
LOCKED = f"{LOOP}test_only_rank_0_locks_and_all_ranks_start_with_that_lock"
TAKEN = f"{LOOP}test_a_job_whose_folder_was_taken_saves_no_checkpoint_and_writes_no_result"
LACKED = "train/test_parts.py::test_a_file_missing_on_one_rank_ends_all_ranks_before_the_engines_start"
TEACHER = "train/test_teacher_check.py::"
UNREAD = f"{TEACHER}test_images_unreadable_on_one_rank_end_the_teacher_check_on_all"
UNEQUAL = f"{TEACHER}test_unequal_shares_are_counted_together_and_one_late_rank_stops_all"
RESULTS = "train/test_results.py::"
WRITTEN = f"{RESULTS}test_only_rank_0_checks_the_lock_and_writes_the_results"
LOST = f"{RESULTS}test_a_job_that_lost_its_run_folder_ends_on_all_ranks_without_writing_results"
SAVE = "checkpoint/test_save.py::"

MISTAKES = {
    "train/loop.py": {
        "train": {
            "ranks.on_main(lock.acquire) => lock.acquire()": LOCKED,
            "ranks.from_main(lock.me['token']) => lock.me['token']": LOCKED,
            "ranks.together(lambda: lock.check_is_seen(token)) => lock.check_is_seen(token)": SEEN,
            "ranks.together(lambda: lock.check_is_seen(token)) =>": SEEN,
        },
        "train_from": {
            "Saver(..., ..., ..., lock.check, ...) => Saver(..., ..., ..., lambda: None, ...)": TAKEN,
            "check=lock.check => check=lambda: None": TAKEN,
        },
    },
    "train/parts.py": {
        "build_parts": {
            "ranks.together(lambda: student_ds_config(run, **...)) => student_ds_config(run, **...)": LACKED,
            "ranks.together(lambda: open_split(run, 'train', split.micro_batch_size, device))"
            " => open_split(run, 'train', split.micro_batch_size, device)": LACKED,
            "ranks.together(lambda: open_split(run, 'val', split.micro_batch_size, device, classes=classes))"
            " => open_split(run, 'val', split.micro_batch_size, device, classes=classes)": LACKED,
            "ranks.together(lambda: open_knn(run, split.micro_batch_size, device))"
            " => open_knn(run, split.micro_batch_size, device)": LACKED,
            "ranks.together(lambda: [name for name in run.teachers if check_teacher_classes(run, name, classes)])"
            " => [name for name in run.teachers if check_teacher_classes(run, name, classes)]": (
                "train/test_parts.py::test_a_teacher_with_other_classes_on_one_rank_is_rejected_on_all"
            ),
            "ranks.together(lambda: build_models(run, classes)) => build_models(run, classes)": LACKED,
        },
    },
    "train/teacher_check.py": {
        "_check_fp8": {
            "ranks.together(lambda: next(micro_batches)) => next(micro_batches)": UNREAD,
        },
        "count_right": {
            "ranks.together(lambda: next(micro_batches)) => next(micro_batches)": UNREAD,
            "ranks.all_true(time.monotonic() - start < MOST_S, device) => time.monotonic() - start < MOST_S": UNEQUAL,
            "ranks.sum_over_ranks(counts) => counts": UNEQUAL,
        },
    },
    "train/calibrate.py": {
        "calibrate": {
            "ranks.together(lambda: next(micro_batches)) => next(micro_batches)": (
                "train/test_calibrate.py::test_images_unreadable_on_one_rank_end_the_calibration_on_all"
            ),
        },
    },
    "train/results.py": {
        "finish": {
            "ranks.on_main(write) => write()": WRITTEN,
            "ranks.on_main(write) => ranks.rank() == 0 and write()": LOST,
        },
    },
    "checkpoint/save.py": {
        "_failures_on_main": {
            "ranks.on_main(attempt) => attempt()": f"{SAVE}test_a_lock_that_rank_0_lost_ends_all_ranks",
        },
        "Saver.begin": {
            "ranks.on_main(point) => point()": (
                f"{SAVE}test_if_rank_0_cannot_write_the_best_pointer_the_start_ends_on_all_ranks"
            ),
        },
    },
    "engine/student.py": {
        "StudentEngine.load": {
            "ranks.together(...) => read_partition(checkpoint, self._flat.group_shapes(), sizes)": (
                "engine/test_student.py::test_a_state_file_unreadable_on_one_rank_ends_the_start_on_all"
            ),
        },
    },
    "train/signals.py": {
        "": {
            "'torch.distributed.launch' => 'launch'": (
                "train/test_signals.py::test_the_exit_of_an_outer_launcher_asks_the_ranks_to_stop"
            ),
        },
    },
}
