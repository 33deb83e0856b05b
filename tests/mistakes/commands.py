"""Mistakes in vitkd_ds/commands."""

DOCTOR = "commands/test_doctor.py::test_"
PREDICT = "commands/plan/test_predict.py::test_"
ONE = f"{PREDICT}one_gpu_by_hand"
TWO = f"{PREDICT}two_gpus_of_a_node_by_hand_and_a_compiled_student_hides_nothing"
NODES = f"{PREDICT}two_nodes_of_four_by_hand"
EACH = f"{PREDICT}each_micro_batch_sends_its_gradients_and_ranks_share_the_way_from_cpu_memory"
MEMORY = f"{PREDICT}memory_by_hand"
MERGED = f"{DOCTOR}bad_news_is_kept_once_with_its_nodes_and_good_news_of_rank_0_alone"
SEEDS = "commands/compare/test_seeds.py"
REPORT = "commands/report/test_report.py::test_"
EXAMPLES = "commands/report/test_examples.py::test_"
FACTS = "commands/report/test_facts.py::test_"
CLASSES = "commands/report/test_classes.py::test_"
SLOW_COUNT = f"{CLASSES}classes_are_counted_as_a_slow_count_does"
COPIED = f"{PREDICT}the_page_says_what_crosses_from_the_cpus_memory_and_how_long_a_shortened_run_takes"
OTHERS = "commands/plan/test_inputs.py::test_other_terms_of_tokens_are_charged_for_as_they_are_counted"

PARTS = "commands/pack/test_parts.py::test_"
DAMAGED = f"{PARTS}images_that_an_ended_run_left_damaged_are_found_and_packed_again"

MISTAKES = {
    "commands/pack/parts.py": {
        "Layout.place": {
            "self._position + size > self._end => self._position + size > self._end + size": (
                "commands/pack/test_pack.py::test_more_images_than_fit_into_a_page_lie_in_several"
            ),
            "-(-self._next_page // count) * count => self._next_page": (
                "commands/pack/test_pack.py::test_a_raw_image_larger_than_ffcvs_page_gets_a_larger_page"
            ),
        },
        "Unfinished.read_part": {
            "len(rows) == len(self.places(number)) => True": (
                f"{PARTS}a_part_without_a_whole_list_is_packed_again_and_what_lies_behind_it_too"
            ),
            "part.records['size'].sum() <= num_bytes => True": DAMAGED,
        },
        "Unfinished.sync": {
            "content.unlink() => pass": f"{PARTS}a_pack_takes_little_more_than_the_space_of_the_file",
        },
        "Unfinished.forget": {
            "self._list_path(number).unlink(missing_ok=True) => pass": DAMAGED,
        },
        "open_unfinished": {
            "_check_settings(folder, settings) => None": (
                f"{PARTS}other_settings_and_damaged_ones_are_rejected_and_what_is_there_can_be_thrown_away"
            ),
        },
    },
    "commands/pack/writer.py": {
        "store_images": {
            "packing.skip_bad or not part.bad => True": (
                "commands/pack/test_bad_pack.py::test_an_image_that_was_bad_is_tried_again_without_skip_bad"
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
            "8 if overlaps else 6 => 8": MEMORY,
            "(8 * trained + inputs.state_bytes) / layout.ranks => 8 * trained + inputs.state_bytes": MEMORY,
            "8 * trained + inputs.state_bytes => 16 * trained": MEMORY,
            "min(inputs.bucket_elements, trained) => inputs.bucket_elements": MEMORY,
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
                "commands/test_doctor_ranks.py::test_another_package_on_one_rank_is_found_on_all"
            ),
        },
    },
    "commands/doctor/machine.py": {
        "least_sum_gb_s": {
            "num_nodes > 1 => 0": f"{DOCTOR}a_sum_over_ranks_is_judged_by_what_the_devices_can_do",
        },
        "check_versions": {
            "[versions[name] for versions in everywhere] => [here.get(name)]": (
                "commands/test_doctor_ranks.py::test_another_package_on_one_rank_is_found_on_all"
            ),
        },
        "build_locks_row": {
            "time.time() - path.stat().st_mtime > STALE_S => time.time() - path.stat().st_mtime > 0": (
                f"{DOCTOR}a_lock_of_a_killed_build_is_found_and_one_of_a_running_build_is_not"
            ),
            "('*/lock', '*/*/lock') => ('*/lock',)": (
                f"{DOCTOR}a_lock_of_a_killed_build_is_found_and_one_of_a_running_build_is_not"
            ),
        },
    },
    "commands/doctor/data.py": {
        "same_row": {
            "ranks.from_all(loader.fingerprint) => [loader.fingerprint]": (
                "commands/test_doctor_ranks.py::test_another_file_on_one_rank_is_found_on_all"
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
            "is_finished(run) => False": f"{DOCTOR}a_finished_folder_and_one_of_other_settings_are_seen",
            "check_settings(run, start.config if start else None) =>": (
                f"{DOCTOR}a_finished_folder_and_one_of_other_settings_are_seen"
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
                f"{CLASSES}the_classes_that_gained_and_lost_most_are_those_against_the_other_run"
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
