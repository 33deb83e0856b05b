"""Mistakes in vitkd_ds/commands."""

DOCTOR = "commands/test_doctor.py::test_"
PREDICT = "commands/plan/test_predict.py::test_"
ONE = f"{PREDICT}one_gpu_by_hand"
TWO = f"{PREDICT}two_gpus_of_a_node_by_hand_and_a_compiled_student_hides_nothing"
NODES = f"{PREDICT}two_nodes_of_four_by_hand"
EACH = f"{PREDICT}each_micro_batch_sends_its_gradients_and_ranks_share_the_way_from_cpu_memory"
MEMORY = f"{PREDICT}memory_by_hand"
MERGED = f"{DOCTOR}bad_news_is_kept_once_with_its_nodes_and_good_news_of_rank_0_alone"
JUDGED = f"{DOCTOR}clocks_open_files_and_file_systems_are_judged"
PACKAGES = f"{DOCTOR}packages_out_of_range_missing_or_different_are_errors"
SLOW_LINK = f"{DOCTOR}the_node_with_the_slow_link_is_named"
SEEDS = "commands/compare/test_seeds.py"
COPIED = f"{PREDICT}the_page_says_what_crosses_from_the_cpus_memory_and_how_long_a_shortened_run_takes"
OTHERS = "commands/plan/test_inputs.py::test_other_terms_of_tokens_are_charged_for_as_they_are_counted"
REPORT = "commands/report/test_report.py::"

MISTAKES = {
    "commands/plan/inputs.py": {
        "inputs_of": {
            "loss_s + others_s => loss_s": OTHERS,
            "... + others_flops => ... + 0": OTHERS,
            "... + loss_bytes + others_bytes => ... + loss_bytes": OTHERS,
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
            "(within - 1) / within * 2 => 2": NODES,
        },
        "link_bytes_per_s": {
            "min(hardware.nvlink_gb_per_s, between) => between": TWO,
            "hardware.network_gb_per_s * gpus_per_node => hardware.network_gb_per_s": NODES,
        },
        "copied_bytes": {
            "layout.accumulation * 2 * teacher_params / layout.ranks => layout.accumulation * 2 * teacher_params": EACH,
        },
        "step_parts": {
            "1 if layout.placement == 'node' else layout.nodes => layout.nodes": NODES,
            "inputs.is_compiled => False": TWO,
            "max(gradients - backward, gradients / buckets) => gradients - backward": TWO,
            "gathers - m * inputs.teacher_s => gathers": NODES,
            "k * (inputs.host_s + (inputs.shard_host_s if layout.placement != 'replica' else 0))"
            " => inputs.host_s + (inputs.shard_host_s if layout.placement != 'replica' else 0)": ONE,
        },
        "memory_bytes": {
            "8 if overlaps else 6 => 8": MEMORY,
            "(16 + 4 * inputs.has_average) * trained / layout.ranks => (16 + 4 * inputs.has_average) * trained": MEMORY,
            "4 * inputs.has_average => 0": MEMORY,
            "min(inputs.bucket_elements, trained) => inputs.bucket_elements": MEMORY,
        },
        "scaling": {
            "SCALES_IF * now => now": f"{PREDICT}it_stops_scaling_where_doubling_brings_too_little",
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
            "row.level in BAD => row.level == 'error'": "commands/test_doctor_rows.py::test_warnings_are_bad_news_too",
            "[row for row in rows_of_ranks[0] if row.name not in bad_names] => [row for row in rows_of_ranks[0]]": (
                MERGED
            ),
            "len(ranks) == len(nodes) => True": MERGED,
        },
        "unequal": {
            "value != values[0] => value == values[0] and rank": PACKAGES,
        },
        "graded": {
            "is_error or is_warning => is_error": (
                "commands/test_doctor_rows.py::test_too_little_space_and_little_are_told_apart"
            ),
        },
    },
    "commands/doctor/machine.py": {
        "": {
            "MOST_SKEW_S = 1.0 => MOST_SKEW_S = 10.0": JUDGED,
        },
        "open_files_row": {
            "FILES_PER_RANK * world_size => FILES_PER_RANK": JUDGED,
        },
        "build_locks_row": {
            "time.time() - path.stat().st_mtime > STALE_S => time.time() - path.stat().st_mtime > 0": (
                f"{DOCTOR}a_lock_of_a_killed_build_is_found_and_one_of_a_running_build_is_not"
            ),
            "('*/lock', '*/*/lock') => ('*/lock',)": (
                f"{DOCTOR}a_lock_of_a_killed_build_is_found_and_one_of_a_running_build_is_not"
            ),
        },
        "requirement_rows": {
            "found == 'none' or not requirement.specifier.contains(found, prereleases=True)"
            " => not requirement.specifier.contains(found, prereleases=True)": PACKAGES,
            "requirement.marker and ... => False and ...": PACKAGES,
        },
        "clocks_row": {
            "max(zip(times_s, nodes)) => min(zip(times_s, nodes))": JUDGED,
        },
        "openmp_row": {
            "policy.upper() == 'PASSIVE' => bool(policy)": f"{DOCTOR}spinning_threads_are_warned_of",
        },
    },
    "commands/doctor/data.py": {
        "file_system": {
            "f'{mount}/' => mount": JUDGED,
            "max(above, key=len) => min(above, key=len)": JUDGED,
        },
        "bytes_row": {
            "list(dict.fromkeys((image for images in bad for image in images))) => []": (
                "commands/test_doctor_rows.py::test_changed_bytes_are_found_in_the_sample"
            ),
        },
    },
    "commands/doctor/network.py": {
        "": {
            "LEAST_PAIR_PART = 0.5 => LEAST_PAIR_PART = 0.1": SLOW_LINK,
        },
        "slowest_row": {
            "item[1][0] => item[1][1]": SLOW_LINK,
        },
        "least_sum_gb_s": {
            "num_nodes > 1 => 0": f"{DOCTOR}a_sum_over_ranks_is_judged_by_what_the_devices_can_do",
        },
        "pairings": {
            "[seats[0], seats[-1], *seats[1:-1]] => [seats[-1], *seats[:-1]]": (
                f"{DOCTOR}in_the_rounds_each_meets_each_once_and_never_two_at_a_time"
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
        "tiles": {
            "if result.images_per_s: ... =>": f"{REPORT}test_the_speed_of_the_first_run_is_shown_where_it_is_known",
        },
    },
    "commands/report/examples.py": {
        "_uri": {
            "{'quality': 85} if kind == 'jpeg' else {} => {}": (
                f"{REPORT}test_large_photographs_are_jpegs_of_quality_85_and_small_images_are_png"
            ),
        },
    },
    "commands/report/page.py": {
        "_figure": {
            "chart['key'] == 'shares' => chart['key'] != 'shares'": (
                f"{REPORT}test_the_key_of_colours_belongs_to_the_chart_of_shares_alone"
            ),
        },
    },
}
