"""Mistakes in vitkd_ds/train; few in log, loop and step."""

SCHEDULE, EVALUATE, LOG, HEALTH = (f"train/test_{name}.py::test_" for name in ("schedule", "evaluate", "log", "health"))
PLAIN = "train/test_plain_torch.py"
RATE = f"{SCHEDULE}the_rate_warms_up_to_a_peak_that_scales_with_the_batch_and_falls_to_the_minimum"
STEPS = f"{SCHEDULE}epochs_become_steps_and_never_none"
ODD = f"{SCHEDULE}odd_lengths_become_steps"
WEIGHTS = f"{SCHEDULE}loss_weights_start_whole_and_end_as_scheduled"
SHARED = f"{SCHEDULE}ranks_share_a_global_batch_in_the_largest_micro_batches_that_fit"
COUNTS = f"{EVALUATE}counts_are_the_slow_ones"
GIVEN_UP = f"{EVALUATE}it_can_be_given_up_needs_an_image_and_agrees_with_no_teacher_where_there_is_none"
METER = f"{LOG}the_meter_means_terms_and_leaves_first_steps_and_pauses_out_of_the_speed"
METER_OF_RANKS = f"{LOG}over_ranks_terms_and_waits_are_means_and_the_speed_is_that_of_all"
AGREEMENT = (
    "train/test_agreement.py::test_it_is_the_slow_one_of_all_images_that_count_and_patches_are_compared_one_by_one"
)
COSINE = (
    "train/test_agreement.py::"
    "test_cosines_are_means_over_the_images_that_count_of_what_the_adapters_make_of_the_student"
)
KNN = "test_label_free.py::test_k_nn_in_the_run_is_that_of_eval_for_the_images_of_all_ranks"
CLIPPING = f"{HEALTH}clipping_is_told_once_when_it_has_acted_on_every_step_for_long"
MOST = f"{HEALTH}a_term_that_is_most_of_the_total_by_its_weight_is_named_with_its_option"
TRACKIO = "train/test_trackers.py::test_trackio_has_every_value_in_the_run_folder_and_a_resumed_run_continues_its_run"
INPUTS = "train/test_inputs.py::test_fused_they_are_the_mixed_images_normalised_for_each_model_and_the_same_targets"
OPENED = "train/test_parts.py::test_a_split_is_opened_with_the_settings_of_the_run"
EXPORTED = "train/test_parts.py::test_the_export_says_how_to_feed_the_student"
JUDGED = "train/test_teacher_check.py::test_the_teacher_is_judged_by_the_interval_or_by_chance"
PADDING = (
    "train/test_predictions.py::test_padding_and_images_that_were_skipped_have_no_answer_and_no_teacher_has_no_column"
)
CTRL_C = "train/test_signals.py::test_ctrl_c_asks_once_and_interrupts_the_second_time"
SUMS = "train/test_calibrate.py::test_sums_give_mean_and_covariance_of_values_far_from_0"
CALIBRATED = "train/test_calibrate.py::test_statistics_are_those_of_the_first_images_of_all_ranks_and_are_taken_once[1]"

WATCHDOG = "train/test_watchdog.py::test_"
HANGS = f"{WATCHDOG}a_hanging_process_ends_with_its_stack_and_a_slow_one_does_not"
EARLY = f"{WATCHDOG}a_rank_that_waits_before_the_first_step_ends_with_0_soon_after_term"
URGED = f"{WATCHDOG}a_step_that_hangs_after_term_ends_soon_and_what_may_take_long_does_not"
TOLD = f"{WATCHDOG}a_rank_that_hangs_or_raises_ends_all_and_each_says_where_it_was"

MISTAKES = {
    "train/watchdog.py": [
        ("        enter(phase)\n", "", HANGS),
        ("limit_s + 2 * poll_s", "60", HANGS),
        ("frame.f_back", "None", HANGS),
        ("            _place.leave()\n", "", EARLY),
        ("_place.phase in EARLY and", "", URGED),
        ("            os._exit(0)\n", "            os._exit(1)\n", EARLY),
        ("_place.num_steps >= 2", "True", URGED),
        ('and _place.phase == "step" and', "and", URGED),
        ("max(urged_at, _place.since)", "_place.since", URGED),
        ("    if step is not None:\n        _place.step = step", "    _place.step = step", TOLD),
        ("isinstance(error, MemoryError) or", "", TOLD),
        ("any(sign in text for sign in PEER_SIGNS)", "False", TOLD),
    ],
    "train/trackers.py": [
        ('{"resume": "allow"', '{"resume": "never"', TRACKIO),
        ("{workdir.name}-{secrets", "{workdir}-{secrets", TRACKIO),
    ],
    "train/schedule.py": [
        ("optim.lr * global_batch_size / optim.lr_batch_size", "optim.lr", RATE),
        ("start + (1 - start) * step", "start + step", RATE),
        ("optim.min_lr + (peak - optim.min_lr)", "optim.min_lr + peak", RATE),
        ("schedule.total_steps - 1 - schedule.warmup_steps", "schedule.total_steps - schedule.warmup_steps", RATE),
        ("if step < schedule.warmup_steps:", "if step <= schedule.warmup_steps:",
         f"{SCHEDULE}without_a_warm_up_the_first_step_has_the_peak"),
        ("min(total, round(warmup))", "round(warmup)", ODD),
        ("min(total, run.max_steps) if", "run.max_steps if", ODD),
        ("math.ceil(run.eval_every_epochs", "math.floor(run.eval_every_epochs", ODD),
        ("round(run.epochs * steps_per_epoch)", "math.floor(run.epochs * steps_per_epoch)", ODD),
        ("optim.warmup_fraction * total if", "optim.warmup_fraction * steps_per_epoch if", ODD),
        ("run.checkpoint.every_steps or steps_per_epoch", "steps_per_epoch", ODD),
        ("accumulation_steps=accumulation_steps,", "accumulation_steps=1,", STEPS),
        ("step / max(1, total_steps - 1)", "step / total_steps", WEIGHTS),
        ("term.weight, term.schedule, total_steps)", 'term.weight, "constant", total_steps)', PLAIN),
        ("if share % size == 0", "if True", SHARED),
        ("min(limit, share)", "share", SHARED),
        ("return is_due or steps_done == self.total_steps", "return is_due",
         f"{SCHEDULE}the_end_is_saved_and_evaluated"),
    ],
    "train/step.py": [
        ("engine.set_lr(lr)", "pass", PLAIN),
        ("in loss_weights_at(step, run", "in loss_weights_at(0, run", PLAIN),
        ("lr_at(step, parts.schedule", "lr_at(step + 1, parts.schedule", PLAIN),
        ("step=step, place=place)", "step=0, place=place)", PLAIN),
        ("value.detach() / num_micro", "value.detach()", PLAIN),
        ("place = micro * ranks.world_size() + ranks.rank()", "place = ranks.rank()", PLAIN),
    ],
    "train/log.py": [
        ("purge_step=resumed_step + 1", "purge_step=0", f"{LOG}points_of_steps_that_run_again_are_purged"),
        ("(self.num_summed * ranks.world_size())", "ranks.world_size()", METER),
        ("(self.num_summed * ranks.world_size())", "self.num_summed", METER_OF_RANKS),
        ('values["images_per_s"] / ranks.world_size()', 'values["images_per_s"]', METER_OF_RANKS),
        ("    except OSError as error:\n        logger.warning(\"the log",
         "    except ZeroDivisionError as error:\n        logger.warning(\"the log",
         f"{LOG}a_disk_that_is_full_for_a_moment_costs_nothing_of_the_log"),
        ("{False: resumed_step, True: evaluated_step}", "{False: resumed_step, True: resumed_step}",
         f"{LOG}an_evaluation_that_runs_again_is_dropped_alone"),
        ("if math.isfinite(value) else None", "",
         f"{LOG}values_that_are_not_finite_are_null_so_that_each_line_stays_json"),
    ],
    "train/evaluate.py": [
        ("* is_real_B).sum(1)", ").sum(1)", COUNTS),
        ("is_hit[:, 0], is_hit.any(1)", "is_hit.any(1), is_hit[:, 0]", COUNTS),
        ("min(5, student_BK", "min(4, student_BK", COUNTS),
        ("[teacher_best_B == labels_B, teacher_best_B == best[:, 0], kl_B]",
         "[teacher_best_B == best[:, 0], teacher_best_B == labels_B, kl_B]",
         COUNTS),
        ("student_BK.log_softmax(1), teacher_BK.log_softmax(1)", "teacher_BK.log_softmax(1), student_BK.log_softmax(1)",
         COUNTS),
        ("student(normalization.apply(images_BCHW, torch.float32))", "student(images_BCHW.float())",
         f"{EVALUATE}images_are_normalised_and_the_student_is_in_eval_mode"),
        ("device=device)\n    student.eval()", "device=device)",
         f"{EVALUATE}images_are_normalised_and_the_student_is_in_eval_mode"),
        ("MICRO_BATCHES_PER_LOOK == 0 and must_stop():", "MICRO_BATCHES_PER_LOOK == 0 and False:", GIVEN_UP),
        ("& (labels_M >= 0), labels_M >= 0]", ", labels_M >= -1]", KNN),
        ("ranks.gather(train_ND), ranks.gather(labels_N)", "train_ND, labels_N", KNN),
    ],
    "train/agreement.py": [
        ("(cross.square().sum() / norms)", "(cross.abs().sum() / norms)", AGREEMENT),
        ("cosine_B[real]", "cosine_B", COSINE),
        ("real = is_real_B.nonzero().flatten()", "real = torch.arange(len(is_real_B))", AGREEMENT),
        ("(student.final_BPD, teacher.final_BPD)", "(student.final_BPD, student.final_BPD)", AGREEMENT),
    ],
    "train/calibrate.py": [
        ("- torch.outer(mean_D, mean_D)", "", SUMS),
        ("return mean_D + self.shift_D,", "return mean_D,", SUMS),
        ("parts.inputs(images_BCHW, labels_B, step=0, place=key)",
         "parts.inputs(images_BCHW, labels_B, step=0, place=0)",
         CALIBRATED),
    ],
    "train/health.py": [
        ("grad_norm > most", "grad_norm < most", CLIPPING),
        ("values.get(FACTOR + name, 1.0)", "1.0",
         f"{HEALTH}a_balanced_term_is_judged_by_what_its_factor_leaves_of_it"),
        ("step - since >= self._patience", "step - since >= 0", CLIPPING),
        ("and finding not in self._said", "", CLIPPING),
        ("weights[name] * values.get(FACTOR", "values.get(FACTOR", MOST),
        ("self._since.pop(finding, None)", "pass", f"{HEALTH}the_only_term_may_be_all_of_it_and_a_break_starts_anew"),
    ],
    "train/inputs.py": [
        ("(teacher.normalization, teacher.dtype) if", "(normalization, dtype) if", INPUTS),
        ("return student_BCHW, student_BCHW if self._teacher else None", "return student_BCHW, student_BCHW", INPUTS),
        ('keys = {"step": step, "place": place}', 'keys = {"step": 0, "place": place}', INPUTS),
        ('keys = {"step": step, "place": place}', 'keys = {"step": step, "place": 0}', INPUTS),
    ],
    "train/parts.py": [
        ("seed=run.seed,", "seed=0,", OPENED),
        ("augment=run.augment if is_train else None", "augment=None", OPENED),
        ("global_batch_size=run.global_batch_size if is_train else None", "global_batch_size=None", OPENED),
        ("classes=classes,\n        device", "device",
         "train/test_parts.py::test_validation_gets_trainings_numbers_and_a_teacher_must_have_their_order"),
        ('{"statistics": build.statistics_of(run.student)} if is_train', "{} if is_train",
         "train/test_parts.py::test_what_randaugment_uncovers_has_the_mean_colour_of_the_runs_student"),
        ('"ema" if self.run.optim.ema_decay else "raw"', '"raw"', EXPORTED),
        ('"crop_pct": data.val_crop_fraction', '"crop_pct": 0.875', EXPORTED),
        ('"val_crop_fraction": data.val_crop_fraction', '"val_crop_fraction": 0.875', EXPORTED),
        ('"label_names": classes', '"label_names": sorted(classes)', EXPORTED),
        ('"needs_logits": needs.logits', '"needs_logits": True',
         "train/test_parts.py::test_the_terms_say_what_is_needed_of_the_teacher"),
        ('run.teacher.placement != "replica"', 'run.teacher.placement == "replica"',
         "train/test_parts.py::test_the_terms_say_what_is_needed_of_the_teacher"),
        ("    if run.losses.needs.logits:\n", "    if False:\n",
         "train/test_parts.py::test_validation_gets_trainings_numbers_and_a_teacher_must_have_their_order"),
        ("torch.manual_seed(run.seed)  # the same student", "pass  # the same student",
         "train/test_parts.py::test_the_student_starts_from_the_seed_alone"),
        ("    check_warmup(run, schedule)\n", "",
         "train/test_parts.py::test_a_run_that_max_steps_cuts_within_its_warm_up_is_refused"),
    ],
    "train/predictions.py": [
        ("joined[:, 0] != PADDING_LABEL", "joined[:, 0] >= -9", PADDING),
        ("student_BK if teacher_BK is None else teacher_BK", "student_BK",
         "train/test_predictions.py::test_each_model_has_its_own_answers"),
    ],
    "train/probe.py": [
        ("(cosines / temperature).exp()", "cosines", "train/test_probe.py::test_neighbours_vote_as_in_the_loop"),
        ("MOMENTUM * speed_KD + error_BK", "error_BK",
         "train/test_probe.py::test_a_classifier_is_fitted_as_torchs_sgd_does"),
        ("labels_N[held])\n", "labels_N[kept[: len(held)]])\n",
         "train/test_probe.py::test_the_probe_is_the_slow_one_and_its_rate_is_chosen_on_images_it_is_not_fitted_to"),
    ],
    "train/statistics.py": [
        ("NORMAL_95 = 1.96", "NORMAL_95 = 1.64",
         "train/test_statistics.py::test_wilsons_interval_has_its_textbook_values"),
        ("T_95[len(values) - 2]", "T_95[len(values) - 1]",
         "train/test_statistics.py::test_the_interval_of_a_mean_is_students"),
        ("statistics.stdev(values) / math", "statistics.pstdev(values) / math",
         "train/test_statistics.py::test_the_interval_of_a_mean_is_students"),
    ],
    "train/teacher_check.py": [
        ("high < figure - FAR_PERCENT", "high < figure", JUDGED),
        ('else "warning" if high < figure else "ok"', 'else "ok"', JUDGED),
        ("low < chance and high < chance + NEAR", "low < chance or high < chance + NEAR",
         "train/test_teacher_check.py::test_too_few_images_to_tell_from_chance_are_a_warning"),
    ],
    "train/signals.py": [
        ("if number == signal.SIGINT and number in _handled:", "if False:", CTRL_C),
        ("if number == signal.SIGINT and number in _handled:", "if number == signal.SIGINT:", CTRL_C),
        ("signal.SIGTERM, signal.SIGINT)", "signal.SIGTERM)", CTRL_C),
        ('URGING = ("SIGTERM", "SIGINT")', 'URGING = ("SIGTERM", "SIGUSR1")', CTRL_C),
        ("signal.set_wakeup_fd(writing, warn_on_full_buffer=False)", "pass",
         "train/test_watchdog.py::test_a_signal_is_seen_while_the_main_thread_waits_in_a_collective"),
    ],
}  # fmt: skip
