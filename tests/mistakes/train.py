"""Mistakes in vitkd_ds/train, mostly outside log, loop and step."""

SCHEDULE = "train/test_schedule.py::test_"
LOG = "train/test_log.py::test_"
PLAIN = "train/test_plain_torch.py"
RATE = f"{SCHEDULE}the_rate_warms_up_to_a_peak_that_scales_with_the_batch_and_falls_to_the_minimum"
STEPS = f"{SCHEDULE}epochs_become_at_least_one_step"
ODD = f"{SCHEDULE}fractional_lengths_become_steps"
WEIGHTS = f"{SCHEDULE}loss_weights_start_at_full_value_and_end_as_scheduled"
SHARED = f"{SCHEDULE}ranks_share_a_global_batch_in_the_largest_micro_batches_that_fit"
METER = f"{LOG}the_meter_averages_terms_and_excludes_first_steps_and_pauses_from_the_speed"
METER_OF_RANKS = f"{LOG}over_ranks_terms_and_waits_are_averaged_and_the_speed_is_the_total"
TRACKIO = "train/test_trackers.py::test_trackio_has_every_value_in_the_run_folder_and_a_resumed_run_continues_its_run"
INPUTS = "train/test_inputs.py::test_fused_inputs_equal_mixed_images_normalised_for_each_model_and_the_same_targets"
OPENED = "train/test_parts.py::test_a_split_is_opened_with_the_settings_of_the_run"
EXPORTED = "train/test_parts.py::test_the_export_says_how_to_feed_the_student"
CTRL_C = "train/test_signals.py::test_ctrl_c_asks_once_and_interrupts_the_second_time"
WATCHDOG = "train/test_watchdog.py::test_"
HANGS = f"{WATCHDOG}a_hanging_process_ends_with_its_stack_and_a_slow_one_does_not"
EARLY = f"{WATCHDOG}a_rank_that_waits_before_the_first_step_ends_with_0_soon_after_term"
URGED = f"{WATCHDOG}a_step_that_hangs_after_term_ends_soon_and_slow_operations_do_not"
TOLD = f"{WATCHDOG}a_rank_that_hangs_or_raises_ends_all_and_each_logs_its_position"

MISTAKES = {
    "train/watchdog.py": {
        "each": {
            "enter(phase) =>": HANGS,
        },
        "_watch": {
            "limit_s + 2 * poll_s => 60": HANGS,
            "_place.leave() =>": EARLY,
            "urged_at is not None and _place.phase in EARLY and ... => urged_at is not None and ...": URGED,
            "os._exit(0) => os._exit(1)": EARLY,
            "_place.num_steps >= 2 => True": URGED,
            "... and _place.phase == 'step' and ... => ... and ...": URGED,
            "max(urged_at, _place.since) => _place.since": URGED,
        },
        "_function": {
            "frame.f_back => None": HANGS,
        },
        "enter": {
            "if step is not None:\n    _place.step = step => _place.step = step": TOLD,
        },
        "report": {
            "isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError'"
            " => type(error).__name__ == 'OutOfMemoryError'": TOLD,
            "any((sign in text for sign in PEER_SIGNS)) => False": TOLD,
        },
    },
    "train/trackers.py": {
        "_Trackio.__init__": {
            "resume='allow' => resume='never'": TRACKIO,
            "workdir.name => workdir": TRACKIO,
        },
    },
    "train/schedule.py": {
        "lr_at": {
            "peak_lr(run) => run.optim.lr": RATE,
            "(1 - start) * step => step": RATE,
            "peak - optim.min_lr => peak": RATE,
            "schedule.total_steps - 1 => schedule.total_steps": RATE,
            "step < schedule.warmup_steps => step <= schedule.warmup_steps": (
                f"{SCHEDULE}without_a_warm_up_the_first_step_has_the_peak"
            ),
        },
        "asked_warmup": {
            "optim.warmup_fraction * total_steps => optim.warmup_fraction * steps_per_epoch": ODD,
        },
        "make_schedule": {
            "min(total, round(asked_warmup(...))) => round(asked_warmup(run, total, steps_per_epoch))": ODD,
            "min(whole, run.max_steps) => run.max_steps": ODD,
            "math.ceil => math.floor": ODD,
            "round(run.epochs * steps_per_epoch) => math.floor(run.epochs * steps_per_epoch)": ODD,
            "run.checkpoint.every_steps or steps_per_epoch => steps_per_epoch": ODD,
            "accumulation_steps=accumulation_steps => accumulation_steps=1": STEPS,
        },
        "loss_weights_at": {
            "max(1, total_steps - 1) => total_steps": WEIGHTS,
            "factors[term.schedule] => factors['constant']": PLAIN,
        },
        "split_batch": {
            "share % size == 0 => True": SHARED,
            "min(limit, share) => share": SHARED,
        },
        "Schedule.is_eval_step": {
            "is_due or steps_done == self.total_steps => is_due": f"{SCHEDULE}the_end_is_saved_and_evaluated",
        },
    },
    "train/step.py": {
        "train_step": {
            "engine.set_lr(lr) => pass": PLAIN,
            "loss_weights_at(step, run, parts.schedule.total_steps)"
            " => loss_weights_at(0, run, parts.schedule.total_steps)": PLAIN,
            "lr_at(step, parts.schedule, run) => lr_at(step + 1, parts.schedule, run)": PLAIN,
            "step=step => step=0": PLAIN,
            "value.detach() / num_micro => value.detach()": PLAIN,
            "micro * ranks.world_size() + ranks.rank() => ranks.rank()": PLAIN,
        },
    },
    "train/log.py": {
        "MetricsLog.__init__": {
            "resumed_step + 1 => 0": f"{LOG}points_of_repeated_steps_are_purged",
            "{False: resumed_step, True: evaluated_step} => {False: resumed_step, True: resumed_step}": (
                f"{LOG}only_the_evaluation_that_runs_again_is_dropped"
            ),
        },
        "Meter.read": {
            "self.num_summed * ranks.world_size() => ranks.world_size()": METER,
            "self.num_summed * ranks.world_size() => self.num_summed": METER_OF_RANKS,
            "values['images_per_s'] / ranks.world_size() => values['images_per_s']": METER_OF_RANKS,
        },
        "_attempt": {
            "try:\n    function()\nexcept OSError as error:\n    ..."
            " => try:\n    function()\nexcept ZeroDivisionError as error:\n    ...": (
                f"{LOG}a_briefly_full_disk_loses_nothing_of_the_log"
            ),
        },
        "_rounded": {
            "float(f'{value:.7g}') if math.isfinite(value) else None => float(f'{value:.7g}')": (
                f"{LOG}non_finite_values_become_null_so_that_each_line_stays_json"
            ),
        },
    },
    "train/inputs.py": {
        "Inputs.__init__": {
            "(teacher.normalization, teacher.dtype) => (normalization, dtype)": INPUTS,
        },
        "Inputs.normalize": {
            "images[way] => images[0]": INPUTS,
        },
        "Inputs.__call__": {
            "{'step': step, 'place': place} => {'step': 0, 'place': place}": INPUTS,
            "{'step': step, 'place': place} => {'step': step, 'place': 0}": INPUTS,
        },
    },
    "train/loaders.py": {
        "open_split": {
            "run.seed => 0": OPENED,
            "run.augment if is_train else None => None": OPENED,
            "run.global_batch_size if is_train else None => None": OPENED,
            "classes=classes =>": (
                "train/test_parts.py::test_validation_uses_trainings_class_numbers_and_a_teacher_must_match_their_order"
            ),
            "{'statistics': build.statistics_of(run.student, run.teachers)} => {}": (
                "train/test_parts.py::test_pixels_uncovered_by_randaugment_have_the_students_mean_colour"
            ),
        },
    },
    "train/parts.py": {
        "Parts.student_description": {
            "'ema' if self.run.optim.ema_decay else 'raw' => 'raw'": EXPORTED,
            "{**..., 'crop_pct': data.val_crop_fraction, **..., 'num_classes': len(classes), 'label_names': classes}"
            " => {**..., 'crop_pct': 0.875, **..., 'num_classes': len(classes), 'label_names': classes}": EXPORTED,
            "{**..., ...: data.val_crop_fraction, **..., 'classes': classes, **...}"
            " => {**..., ...: 0.875, **..., 'classes': classes, **...}": EXPORTED,
            "{**..., 'num_classes': len(classes), ...: classes}"
            " => {**..., 'num_classes': len(classes), ...: sorted(classes)}": EXPORTED,
        },
        "teacher_needs": {
            "needs.logits => True": "train/test_parts.py::test_the_terms_determine_which_teacher_outputs_are_needed",
            "run.teachers[name].placement != 'replica' => run.teachers[name].placement == 'replica'": (
                "train/test_parts.py::test_the_terms_determine_which_teacher_outputs_are_needed"
            ),
        },
        "check_teacher_classes": {
            "run.losses_of(name).needs.logits => False": (
                "train/test_parts.py::test_validation_uses_trainings_class_numbers_and_a_teacher_must_match_their_order"
            ),
        },
        "build_models": {
            "torch.manual_seed(run.seed) => pass": (
                "train/test_parts.py::test_the_students_initial_weights_depend_only_on_the_seed"
            ),
        },
        "build_parts": {
            "check_warmup(run, schedule) =>": (
                "train/test_parts.py::test_a_run_that_ends_within_its_warm_up_is_rejected"
            ),
        },
    },
    "train/signals.py": {
        "_handle": {
            "number == signal.SIGINT and number in _handled => False": CTRL_C,
            "number == signal.SIGINT and number in _handled => number == signal.SIGINT": CTRL_C,
        },
        "": {
            "(signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)"
            " => (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)": CTRL_C,
            "number != signal.SIGUSR1 => number != signal.SIGINT": CTRL_C,
        },
        "listen": {
            "signal.set_wakeup_fd(writing, warn_on_full_buffer=False) => pass": (
                "train/test_watchdog.py::test_a_signal_is_noticed_while_the_main_thread_waits_in_a_collective"
            ),
        },
    },
}
