"""Mistakes in vitkd_ds/commands."""

DOCTOR = "commands/test_doctor.py::test_"
PREDICT = "commands/plan/test_predict.py::test_"
ONE = f"{PREDICT}one_gpu_by_hand"
TWO = f"{PREDICT}two_gpus_on_a_node_by_hand_and_a_compiled_student_overlaps_nothing"
NODES = f"{PREDICT}two_nodes_of_four_by_hand"
EACH = f"{PREDICT}each_micro_batch_sends_gradients_and_ranks_share_the_cpu_memory_link"
MEMORY = f"{PREDICT}memory_by_hand"
MERGED = f"{DOCTOR}failures_appear_once_with_their_nodes_and_successes_only_from_rank_0"
SEEDS = "commands/compare/test_seeds.py"
REPORT = "commands/report/test_report.py::test_"
EXAMPLES = "commands/report/test_examples.py::test_"
FACTS = "commands/report/test_facts.py::test_"
CLASSES = "commands/report/test_classes.py::test_"
SLOW_COUNT = f"{CLASSES}class_counts_match_a_slow_count"
COPIED = f"{PREDICT}the_output_gives_bytes_moved_from_cpu_memory_and_a_shortened_runs_duration"
OTHERS = "commands/plan/test_inputs.py::test_other_token_terms_cost_as_much_as_counted"

PARTS = "commands/pack/test_parts.py::test_"
DAMAGED = f"{PARTS}damaged_images_of_a_stopped_run_are_detected_and_packed_again"

MISTAKES = {
    "commands/pack/parts.py": {
        "Layout.place": {
            "self._position + size > self._end => self._position + size > self._end + size": (
                "commands/pack/test_pack.py::test_images_that_exceed_a_page_are_stored_in_several"
            ),
            "-(-self._next_page // count) * count => self._next_page": (
                "commands/pack/test_pack.py::test_a_raw_image_larger_than_ffcvs_page_gets_a_larger_page"
            ),
        },
        "Unfinished.read_part": {
            "len(rows) == len(self.places(number)) => True": (
                f"{PARTS}a_part_with_a_missing_or_damaged_list_and_all_data_after_it_are_packed_again"
            ),
            "part.records['size'].sum() <= num_bytes => True": DAMAGED,
        },
        "Unfinished.sync": {
            "content.unlink() => pass": f"{PARTS}packing_needs_little_more_space_than_the_file",
        },
        "Unfinished.forget": {
            "self._list_path(number).unlink(missing_ok=True) => pass": DAMAGED,
        },
        "open_unfinished": {
            "_check_settings(folder, settings) => None": (
                f"{PARTS}other_or_damaged_settings_are_rejected_and_existing_parts_can_be_discarded"
            ),
        },
    },
    "commands/pack/writer.py": {
        "store_images": {
            "packing.skip_bad or not part.bad => True": (
                "commands/pack/test_bad_pack.py::test_without_skip_bad_a_bad_image_is_retried"
            ),
        },
    },
    "commands/plan/inputs.py": {
        "inputs_of": {
            "loss_s + others_s => loss_s": OTHERS,
            "... + others_flops => ... + 0": OTHERS,
            "... + loss_bytes + others_bytes => ... + loss_bytes": OTHERS,
        },
        "_others_cost": {
            "_others(run).values() => list(_others(run).values())[:0]": OTHERS,
        },
        "_gathered_modules": {
            "getattr(teacher, 'blocks', has_own) => getattr(teacher, 'blocks', [teacher])": (
                "commands/plan/test_inputs.py::test_a_teacher_without_blocks_is_gathered_module_by_module"
            ),
        },
    },
    "commands/plan/text.py": {
        "_speed": {
            "schedule.total_steps * total => run.epochs * steps * total": COPIED,
            "predict.copied_bytes(layout, teacher_params=inputs.teacher_params)"
            " => 0 * predict.copied_bytes(layout, teacher_params=inputs.teacher_params)": COPIED,
        },
    },
    "commands/plan/predict.py": {
        "bytes_per_step": {
            "layout.accumulation * 2 => 2": EACH,
            "layout.accumulation * 2 => layout.accumulation": TWO,
            "part * 2 * teacher_params => 2 * teacher_params": NODES,
        },
        "link_bytes_per_s": {
            "min(hardware.nvlink_gb_per_s, between) => between": TWO,
            "hardware.network_gb_per_s * gpus_per_node => hardware.network_gb_per_s": NODES,
        },
        "copied_bytes": {
            "layout.accumulation * 2 * teacher_params / layout.ranks => layout.accumulation * 2 * teacher_params": EACH,
        },
        "step_parts": {
            "inputs.is_compiled => False": TWO,
            "max(gradients - backward, gradients / buckets) => gradients - backward": TWO,
            "gathers - m * inputs.teacher_s => gathers": NODES,
            "k * (inputs.host_s + (inputs.shard_host_s if layout.placement != 'replica' else 0))"
            " => inputs.host_s + (inputs.shard_host_s if layout.placement != 'replica' else 0)": ONE,
        },
        "memory_bytes": {
            "4 if overlaps else 2 => 4": MEMORY,
            "(8 * trained + inputs.state_bytes) / layout.ranks => 8 * trained + inputs.state_bytes": MEMORY,
            "8 * trained + inputs.state_bytes => 16 * trained": MEMORY,
            "min(inputs.bucket_elements, trained) => inputs.bucket_elements": MEMORY,
            "4 * inputs.student_params => 0": MEMORY,
        },
    },
    "commands/plan/shapes.py": {
        "step_flops": {
            "3 * trained => 2 * trained": (
                "commands/plan/test_shapes.py::test_operations_of_a_tiny_model_and_of_a_step_by_hand"
            ),
        },
        "activation_bytes": {
            "if checkpointed:\n    ... => if False:\n    ...": (
                "commands/plan/test_shapes.py::test_checkpointing_keeps_the_blocks_inputs_and_one_block"
            ),
        },
    },
    "commands/doctor/rows.py": {
        "merged": {
            "row.level in BAD => row.level == 'error'": MERGED,
            "[row for row in rows_of_ranks[0] if row.name not in bad_names] => [row for row in rows_of_ranks[0]]": (
                MERGED
            ),
            "len(ranks) == len(nodes) => True": MERGED,
        },
        "unequal": {
            "value != values[0] => value == values[0] and rank": (
                "commands/test_doctor_ranks.py::test_a_different_package_on_one_rank_is_detected_on_all"
            ),
        },
    },
    "commands/doctor/machine.py": {
        "least_sum_gb_s": {
            "num_nodes > 1 => 0": f"{DOCTOR}all_reduce_speed_is_judged_by_the_devices_capability",
        },
        "check_versions": {
            "[versions[name] for versions in everywhere] => [here.get(name)]": (
                "commands/test_doctor_ranks.py::test_a_different_package_on_one_rank_is_detected_on_all"
            ),
        },
        "build_locks_row": {
            "time.time() - path.stat().st_mtime > STALE_S => time.time() - path.stat().st_mtime > 0": (
                f"{DOCTOR}only_a_killed_builds_lock_is_reported"
            ),
            "('*/lock', '*/*/lock') => ('*/lock',)": (f"{DOCTOR}only_a_killed_builds_lock_is_reported"),
        },
    },
    "commands/doctor/data.py": {
        "same_row": {
            "ranks.from_all(loader.fingerprint) => [loader.fingerprint]": (
                "commands/test_doctor_ranks.py::test_a_different_file_on_one_rank_is_detected_on_all"
            ),
        },
    },
    "commands/doctor/folder.py": {
        "": {
            "SPARE_CHECKPOINTS = 2 => SPARE_CHECKPOINTS = 0": (
                f"{DOCTOR}too_little_space_for_the_checkpoints_is_an_error"
            ),
        },
        "run_row": {
            "is_finished(run) => False": f"{DOCTOR}a_finished_folder_and_one_with_other_settings_are_reported",
            "check_settings(run, start.config if start else None) =>": (
                f"{DOCTOR}a_finished_folder_and_one_with_other_settings_are_reported"
            ),
        },
    },
    "commands/report/page.py": {
        "_template": {
            "autoescape=True => autoescape=False": f"{REPORT}text_never_becomes_markup",
        },
    },
    "commands/report/classes.py": {
        "_rows": {
            "own.student == own.teacher => own.student == own.label": SLOW_COUNT,
        },
        "difference": {
            "100 * (gained - lost) / len(right) => 100 * (lost - gained) / len(right)": (
                f"{CLASSES}largest_class_gains_and_losses_are_relative_to_the_other_run"
            ),
        },
    },
    "commands/compare/seeds.py": {
        "groups_of": {
            "(result for result in results if result.is_final) => (result for result in results)": SEEDS,
        },
        "_difference_line": {
            "group.keys() & first.keys() => group.keys()": SEEDS,
            "group[seed].top1 - first[seed].top1 => first[seed].top1 - group[seed].top1": SEEDS,
        },
        "_is_equal": {
            "result.settings == other.settings and (not result.other_images(other))"
            " => not result.other_images(other)": SEEDS,
        },
    },
    "commands/report/facts.py": {
        "_tiles": {
            "if result.images_per_s: ... =>": f"{FACTS}the_speed_of_the_first_run_is_shown_where_it_is_known",
        },
    },
    "commands/report/examples.py": {
        "_uri": {
            "quality=85 => quality=75": f"{EXAMPLES}large_photographs_are_jpegs_of_quality_85_and_small_images_are_png",
        },
    },
}
