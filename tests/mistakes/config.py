"""Mistakes in vitkd_ds/config."""

BOUNDS = "config/test_part.py::test_values_at_a_limit_are_accepted_and_just_outside_rejected"
CHECKED = "config/test_part.py::test_settings_are_checked_on_creation_and_replacement"
WORDS = "config/test_part.py::test_words_and_limits_come_from_the_annotation"
MAPPING = "config/test_part.py::test_a_mapping_of_settings_is_addressed_extended_and_listed"
NEEDS = "config/test_losses.py::test_inputs_of_active_terms_are_combined_and_inactive_terms_do_not_count"
RUN_FOLDER = "config/test_run_folder.py::test_"
REFUSED = "test_cli.py::test_invalid_options_are_rejected_with_key_and_value"
TEACHERS = "config/test_teachers.py::test_"

MISTAKES = {
    "config/part.py": {
        "Part": {
            "allow_inf_nan=False =>": CHECKED,
            "extra='forbid' =>": CHECKED,
            "strict=True =>": CHECKED,
        },
        "what": {
            "'ge' in limits => True": WORDS,
        },
        "_number": {
            "value if type(value) is int else number => number": (
                "config/test_part.py::test_an_integer_stays_an_integer_in_a_float_field"
            ),
        },
    },
    "config/optim.py": {
        "": {
            "0 <= value < 1 => 0 <= value <= 1": BOUNDS,
        },
    },
    "config/run.py": {
        "": {
            "0 < pair[0] <= pair[1] <= 1 => 0 <= pair[0] <= pair[1] <= 1": BOUNDS,
            "0 < pair[0] <= pair[1] <= 1 => 0 < pair[0] <= pair[1]": BOUNDS,
            "number == 0 or number >= 2 => number >= 0": BOUNDS,
            "0 < pair[0] <= pair[1] => 0 < pair[0]": BOUNDS,
        },
        "CheckpointConfig": {
            "keep_last: Annotated[int, Ge(1)] = 2 => keep_last: Annotated[int, Ge(0)] = 2": BOUNDS,
            "max_failures: Annotated[int, Ge(1)] = 3 => max_failures: Annotated[int, Ge(0)] = 3": BOUNDS,
        },
        "StudentConfig": {
            "Interval(ge=0, lt=1) => Interval(ge=0, le=1)": BOUNDS,
        },
        "AugmentConfig": {
            "Ge(1) => Ge(0)": BOUNDS,
        },
        "Run": {
            "global_batch_size: Annotated[int, Gt(0)] => global_batch_size: Annotated[int, Ge(0)]": BOUNDS,
            "epochs: Annotated[Number, Gt(0)] => epochs: Annotated[Number, Ge(0)]": BOUNDS,
            "log_every_steps: Annotated[int, Gt(0)] = 10 => log_every_steps: Annotated[int, Ge(0)] = 10": (BOUNDS),
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
                "config/test_overrides.py::test_blocks_are_tapped_only_if_vitkd_is_on"
            ),
        },
        "SpectralTerm.needs": {
            "self.teacher_blocks => self.student_blocks": NEEDS,
        },
        "": {
            "len(blocks) == 2 => True": BOUNDS,
        },
        "ViTKDTerm": {
            "Interval(gt=0, lt=1) => Interval(ge=0, le=1)": BOUNDS,
        },
        "DKDTerm.check_run": {
            "('mixup_alpha', 'cutmix_alpha') => ('mixup_alpha',)": (
                "config/test_losses.py::test_a_loss_with_one_label_per_image_is_rejected_with_mixing"
            ),
        },
    },
    "config/term.py": {
        "Needs.__or__": {
            "own or others => own": NEEDS,
            "{*own, *others} => {*own}": NEEDS,
        },
        "Needs.tapped": {
            "getattr(self, f'{role}_blocks') => self.student_blocks": NEEDS,
        },
    },
    "config/teachers.py": {
        "teacher_of": {
            "term.teacher == USUAL and len(names) == 1 => len(names) == 1": (
                f"{TEACHERS}errors_name_the_teacher_that_does_not_fit"
            ),
        },
        "stored": {
            "values.keys() <= {USUAL} => len(values) <= 1": (
                f"{TEACHERS}a_single_default_teacher_is_stored_as_in_earlier_versions"
            ),
        },
    },
    "config/check.py": {
        "_check_teachers": {
            "not run.teachers => False": REFUSED,
        },
        "_check_teacher": {
            "teacher.fp8 and teacher.placement != 'replica' => False": REFUSED,
            "teacher.keep_tokens and comparing => False": ("models/test_selection.py::test_token_terms_are_rejected"),
            "teacher.checkpoint == 'random' and (not run.debug) => False": REFUSED,
        },
        "_check_rate": {
            "optim.warmup_epochs >= run.epochs => optim.warmup_epochs > run.epochs": REFUSED,
            "optim.min_lr > peak_lr(run) => optim.min_lr > optim.lr": REFUSED,
            "optim.warmup_epochs and optim.warmup_fraction => False": REFUSED,
        },
    },
    "config/overrides.py": {
        "_plain": {
            "kind in (int, float) and '_' in text => False": BOUNDS,
        },
        "apply_overrides": {
            "part.get(name) or {} => {}": MAPPING,
        },
        "from_dict": {
            "strict=False => strict=True": (
                "config/test_overrides.py::test_a_stored_number_keeps_its_type_and_stored_text_is_converted"
            ),
        },
    },
    "config/reading.py": {
        "patiently.retrying": {
            "error.errno in NOT_THERE or isinstance(error, Unreadable) => isinstance(error, Unreadable)": (
                "config/test_reading.py::test_a_missing_file_is_reported_at_once_and_endless_brackets_are_not_json"
            ),
            "(*WAITS_S, None) => (None,)": (
                "config/test_reading.py::"
                "test_a_briefly_unreadable_file_is_read_and_a_lasting_failure_is_a_distinct_error"
            ),
        },
    },
    "config/run_folder.py": {
        "newest": {
            "(tag for tag in every if tag <= latest) => (tag for tag in every)": (
                f"{RUN_FOLDER}if_the_named_checkpoint_is_missing_the_next_older_one_counts_or_else_the_newest"
            ),
        },
        "tags": {
            "reverse=True =>": (f"{RUN_FOLDER}only_published_checkpoints_count_and_a_pointer_to_another_is_ignored"),
        },
        "pointer": {
            "text if TAG.fullmatch(text) else '' => text": (
                f"{RUN_FOLDER}only_published_checkpoints_count_and_a_pointer_to_another_is_ignored"
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
