"""Mistakes in vitkd_ds/config."""

BOUNDS = "config/test_rules.py::test_values_at_a_bound_are_taken_and_beside_it_refused"
HOLDS = "config/test_rules.py::test_a_rule_holds_for_what_its_words_say"
NEEDS = "config/test_losses.py::test_what_the_active_terms_compare_is_joined_and_the_others_do_not_count"
RUN_FOLDER, REFUSED = (
    "config/test_run_folder.py::test_",
    "test_cli.py::test_what_cannot_be_is_refused_with_key_and_value",
)

MISTAKES = {
    "config/rules.py": [
        ("lambda value: value > 0", "lambda value: value >= 0", HOLDS),
        ("lambda value: value >= low", "lambda value: value > low - 1", HOLDS),
        ('low if interval[0] == "["', "low if interval", HOLDS),
        ("require(rule.holds(value),", "require(True,",
         "config/test_rules.py::test_a_part_checks_its_fields_and_names_key_value_and_option"),
    ],
    "config/run.py": [
        ("lambda pair: 0 < pair[0] <= pair[1] <= 1", "lambda pair: 0 <= pair[0] <= pair[1] <= 1", BOUNDS),
        ("lambda pair: 0 < pair[0] <= pair[1] <= 1", "lambda pair: 0 < pair[0] <= pair[1]", BOUNDS),
        ("number == 0 or number >= 2", "number >= 0", BOUNDS),
        ("lambda pair: 0 < pair[0] <= pair[1])", "lambda pair: 0 < pair[0])", BOUNDS),
        ("all(0 <= value < 1 for", "all(0 <= value <= 1 for", BOUNDS),
        ("keep_last: Annotated[int, at_least(1)]", "keep_last: Annotated[int, at_least(0)]", BOUNDS),
        ("max_failures: Annotated[int, at_least(1)]", "max_failures: Annotated[int, at_least(0)]", BOUNDS),
        ('drop_path_rate: Annotated[float, within("[0, 1)")]', 'drop_path_rate: Annotated[float, within("[0, 1]")]',
         BOUNDS),
        ("repeats: Annotated[int, at_least(1,", "repeats: Annotated[int, at_least(0,", BOUNDS),
        ("global_batch_size: Annotated[int, POSITIVE]", "global_batch_size: Annotated[int, at_least(0)]", BOUNDS),
        ("epochs: Annotated[float, POSITIVE]", "epochs: Annotated[float, at_least(0)]", BOUNDS),
        ("log_every_steps: Annotated[int, POSITIVE]", "log_every_steps: Annotated[int, at_least(0)]", BOUNDS),
        ("run.optim.lr * run.global_batch_size / run.optim.lr_batch_size", "run.optim.lr",
         "train/test_introduction.py::test_the_start_names_both_models_and_the_scaled_learning_rate"),
    ],
    "config/losses.py": [
        ("if term.weight}", "if True}", NEEDS),
        ("student_blocks=self.blocks, teacher_blocks=self.blocks)", "student_blocks=(0, 1), teacher_blocks=(0, 1))",
         "config/test_overrides.py::test_the_blocks_of_vitkd_are_tapped_and_none_where_it_is_off"),
        ("teacher_blocks=self.teacher_blocks)", "teacher_blocks=self.student_blocks)", NEEDS),
        ("lambda blocks: len(blocks) == 2", "lambda blocks: True", BOUNDS),
        ('mask_ratio: Annotated[float, within("(0, 1)")]', 'mask_ratio: Annotated[float, within("[0, 1]")]', BOUNDS),
        ('for key in ("mixup_alpha", "cutmix_alpha") if', 'for key in ("mixup_alpha",) if',
         "config/test_losses.py::test_a_loss_of_one_label_an_image_is_refused_with_mixing"),
    ],
    "config/term.py": [
        ("self.tokens or other.tokens,", "self.tokens,", NEEDS),
        ("{*self.teacher_blocks, *other.teacher_blocks}", "{*self.teacher_blocks, *other.student_blocks}", NEEDS),
        ('getattr(self, f"{role}_blocks") if has_tokens', "self.student_blocks if has_tokens", NEEDS),
    ],
    "config/check.py": [
        ("if needing and not run.teacher:", "if False:", REFUSED),
        ('run.teacher.fp8 and run.teacher.placement != "replica"', "False", REFUSED),
        ("if run.teacher.keep_tokens and comparing:", "if False:",
         "models/test_selection.py::test_terms_of_tokens_are_refused"),
        ('if run.teacher.checkpoint == "random" and not run.debug:', "if False:", REFUSED),
        ("if optim.warmup_epochs >= run.epochs:", "if optim.warmup_epochs > run.epochs:", REFUSED),
        ("if optim.min_lr > peak_lr(run):", "if optim.min_lr > optim.lr:", REFUSED),
        ("if optim.warmup_epochs and optim.warmup_fraction:", "if False:", REFUSED),
    ],
    "config/overrides.py": [
        ('"_" in text or not math', "not math", BOUNDS),
        ("not math.isfinite(float(text))", "float(text) != float(text)", BOUNDS),
        ("in zip(element_types, parts, strict=True)]", "in zip(element_types, parts)]", REFUSED),
        ("values[name] = value if value == converted else converted", "values[name] = converted",
         "config/test_overrides.py::test_a_stored_number_keeps_its_type_and_stored_text_is_converted"),
    ],
    "config/reading.py": [
        ("            if error.errno in NOT_THERE or", "            if",
         "config/test_reading.py::test_what_is_no_file_is_said_at_once_and_brackets_without_end_are_no_json"),
        ("for wait_s in (*WAITS_S, None):", "for wait_s in (None,):",
         "config/test_reading.py::test_a_file_that_cannot_be_read_for_a_moment_is_read_and_else_an_error_of_its_own"),
    ],
    "config/run_folder.py": [
        ("for tag in every if tag <= latest)", "for tag in every)",
         f"{RUN_FOLDER}where_the_newest_is_gone_the_next_older_one_counts_and_else_the_newest"),
        ("if TAG.fullmatch(name)), reverse=True)", "if TAG.fullmatch(name)))",
         f"{RUN_FOLDER}only_published_checkpoints_count_and_a_pointer_that_names_none_points_nowhere"),
        ('return text if TAG.fullmatch(text) else ""', "return text",
         f"{RUN_FOLDER}only_published_checkpoints_count_and_a_pointer_that_names_none_points_nowhere"),
        ("elif not (folder / DONE).exists() and", "elif",
         f"{RUN_FOLDER}a_path_means_the_student_of_the_run_or_of_a_checkpoint"),
    ],
}  # fmt: skip
