"""Mistakes in vitkd_ds/config."""

BOUNDS = "config/test_rules.py::test_values_at_a_bound_are_taken_and_beside_it_refused"
HOLDS = "config/test_rules.py::test_a_rule_holds_for_what_its_words_say"
NEEDS = "config/test_losses.py::test_what_the_active_terms_compare_is_joined_and_the_others_do_not_count"
RUN_FOLDER = "config/test_run_folder.py::test_"
REFUSED = "test_cli.py::test_what_cannot_be_is_refused_with_key_and_value"

MISTAKES = {
    "config/rules.py": {
        "": {
            "value > 0 => value >= 0": HOLDS,
        },
        "at_least": {
            "value >= low => value > low - 1": HOLDS,
        },
        "within": {
            "interval[0] == '[' => interval": HOLDS,
        },
        "Part.__post_init__": {
            "rule.holds(value) => True": (
                "config/test_rules.py::test_a_part_checks_its_fields_and_names_key_value_and_option"
            ),
        },
    },
    "config/run.py": {
        "": {
            "0 < pair[0] <= pair[1] <= 1 => 0 <= pair[0] <= pair[1] <= 1": BOUNDS,
            "0 < pair[0] <= pair[1] <= 1 => 0 < pair[0] <= pair[1]": BOUNDS,
            "number == 0 or number >= 2 => number >= 0": BOUNDS,
            "0 < pair[0] <= pair[1] => 0 < pair[0]": BOUNDS,
            "0 <= value < 1 => 0 <= value <= 1": BOUNDS,
        },
        "CheckpointConfig": {
            "keep_last: Annotated[int, at_least(1)] = 2 => keep_last: Annotated[int, at_least(0)] = 2": BOUNDS,
            "max_failures: Annotated[int, at_least(1)] = 3 => max_failures: Annotated[int, at_least(0)] = 3": BOUNDS,
        },
        "StudentConfig": {
            "within('[0, 1)') => within('[0, 1]')": BOUNDS,
        },
        "AugmentConfig": {
            "at_least(1, 'off') => at_least(0, 'off')": BOUNDS,
        },
        "Run": {
            "global_batch_size: Annotated[int, POSITIVE] => global_batch_size: Annotated[int, at_least(0)]": BOUNDS,
            "epochs: Annotated[float, POSITIVE] => epochs: Annotated[float, at_least(0)]": BOUNDS,
            "log_every_steps: Annotated[int, POSITIVE] = 10 => log_every_steps: Annotated[int, at_least(0)] = 10": (
                BOUNDS
            ),
        },
        "peak_lr": {
            "run.optim.lr * run.global_batch_size / run.optim.lr_batch_size => run.optim.lr": (
                "train/test_introduction.py::test_the_start_names_both_models_and_the_scaled_learning_rate"
            ),
        },
    },
    "config/losses.py": {
        "Losses.active": {
            "term.weight => True": NEEDS,
        },
        "ViTKDTerm.needs": {
            "...(**..., student_blocks=self.blocks, teacher_blocks=self.blocks)"
            " => ...(**..., student_blocks=(0, 1), teacher_blocks=(0, 1))": (
                "config/test_overrides.py::test_the_blocks_of_vitkd_are_tapped_and_none_where_it_is_off"
            ),
        },
        "SpectralTerm.needs": {
            "self.teacher_blocks => self.student_blocks": NEEDS,
        },
        "": {
            "len(blocks) == 2 => True": BOUNDS,
        },
        "ViTKDTerm": {
            "within('(0, 1)') => within('[0, 1]')": BOUNDS,
        },
        "DKDTerm.check_run": {
            "('mixup_alpha', 'cutmix_alpha') => ('mixup_alpha',)": (
                "config/test_losses.py::test_a_loss_of_one_label_an_image_is_refused_with_mixing"
            ),
        },
    },
    "config/term.py": {
        "Needs.__or__": {
            "self.tokens or other.tokens => self.tokens": NEEDS,
            "other.teacher_blocks => other.student_blocks": NEEDS,
        },
        "Needs.tapped": {
            "getattr(self, f'{role}_blocks') => self.student_blocks": NEEDS,
        },
    },
    "config/check.py": {
        "_check_teacher": {
            "needing and (not run.teacher) => False": REFUSED,
            "run.teacher.fp8 and run.teacher.placement != 'replica' => False": REFUSED,
            "run.teacher.keep_tokens and comparing => False": (
                "models/test_selection.py::test_terms_of_tokens_are_refused"
            ),
            "run.teacher.checkpoint == 'random' and (not run.debug) => False": REFUSED,
        },
        "_check_rate": {
            "optim.warmup_epochs >= run.epochs => optim.warmup_epochs > run.epochs": REFUSED,
            "optim.min_lr > peak_lr(run) => optim.min_lr > optim.lr": REFUSED,
            "optim.warmup_epochs and optim.warmup_fraction => False": REFUSED,
        },
    },
    "config/overrides.py": {
        "convert": {
            "'_' in text or not math.isfinite(float(text)) => not math.isfinite(float(text))": BOUNDS,
            "not math.isfinite(float(text)) => float(text) != float(text)": BOUNDS,
        },
        "_to_tuple": {
            "strict=True =>": REFUSED,
        },
        "from_dict": {
            "value if value == converted else converted => converted": (
                "config/test_overrides.py::test_a_stored_number_keeps_its_type_and_stored_text_is_converted"
            ),
        },
    },
    "config/reading.py": {
        "patiently.retrying": {
            "error.errno in NOT_THERE or isinstance(error, Unreadable) => isinstance(error, Unreadable)": (
                "config/test_reading.py::test_what_is_no_file_is_said_at_once_and_brackets_without_end_are_no_json"
            ),
            "(*WAITS_S, None) => (None,)": (
                "config/test_reading.py::"
                "test_a_file_that_cannot_be_read_for_a_moment_is_read_and_else_an_error_of_its_own"
            ),
        },
    },
    "config/run_folder.py": {
        "newest": {
            "(tag for tag in every if tag <= latest) => (tag for tag in every)": (
                f"{RUN_FOLDER}where_the_newest_is_gone_the_next_older_one_counts_and_else_the_newest"
            ),
        },
        "tags": {
            "reverse=True =>": (
                f"{RUN_FOLDER}only_published_checkpoints_count_and_a_pointer_that_names_none_points_nowhere"
            ),
        },
        "pointer": {
            "text if TAG.fullmatch(text) else '' => text": (
                f"{RUN_FOLDER}only_published_checkpoints_count_and_a_pointer_that_names_none_points_nowhere"
            ),
        },
        "find_student": {
            "not (folder / DONE).exists() and (tag := newest(folder / CHECKPOINTS))"
            " => (tag := newest(folder / CHECKPOINTS))": (
                f"{RUN_FOLDER}a_path_means_the_student_of_the_run_or_of_a_checkpoint"
            ),
        },
    },
}
