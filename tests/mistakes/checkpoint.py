"""Mistakes in vitkd_ds/checkpoint."""

FILES = "checkpoint/test_files.py::test_"
LOAD = "checkpoint/test_load.py::test_"
LOCK = "checkpoint/test_lock.py::test_"
HOLDER = "checkpoint/test_holder.py::test_"
FOLDER = "checkpoint/test_folder.py::test_"
BEGUN = "train/test_introduction.py::test_"
SAVE = "checkpoint/test_save.py::test_"
ON_DISK = f"{FILES}bytes_are_on_the_disk_before_the_name_appears"
ORDER = f"{SAVE}a_checkpoint_is_on_disk_before_it_is_renamed_and_renamed_before_latest_points_to_it"
CHECKED = f"{SAVE}a_job_that_lost_its_lock_publishes_nothing"
DAMAGE = f"{LOAD}damage_is_named_and_the_next_older_checkpoint_is_loaded"
IDENTITY = "train/test_identity.py::test_"
OLDER = f"{LOAD}a_newer_checkpoint_of_an_abandoned_continuation_does_not_count_as_damaged"
TAKEN = f"{LOAD}a_named_checkpoint_is_loaded_or_else_latest_but_no_abandoned_newer_one"
ONCE = f"{LOAD}another_runs_checkpoint_is_used_once_and_then_this_runs_own"
FREE = f"{FOLDER}settings_that_affect_learning_are_not_changeable"
MAY_NOT = f"{FOLDER}settings_that_affect_learning_must_not_change"
IMAGES = f"{FOLDER}a_finished_run_recognises_its_images_under_any_path"
CHANGED = f"{LOCK}a_lock_changed_by_others_is_rewritten_and_a_second_job_is_rejected"
BEATS = f"{LOCK}a_job_on_another_host_counts_as_running_while_its_heartbeats_arrive"
TURNED = "checkpoint/test_save.py::test_a_run_resumed_from_an_older_checkpoint_has_the_best_known_then"

MISTAKES = {
    "checkpoint/files.py": {
        "HashingFile.finish": {
            "os.fsync(self.file.fileno()) => pass": ON_DISK,
            "self.file.flush() =>": ON_DISK,
            "self.error is not None => False": (
                f"{FILES}a_failed_write_is_raised_at_the_end_and_not_inside_the_writer"
            ),
        },
        "write_whole": {
            "temporary.replace(path) => path.write_bytes(temporary.read_bytes())": ON_DISK,
            "path.with_name(f'.{path.name}.tmp') => path": f"{FILES}a_failed_write_leaves_the_old_file",
        },
        "HashingFile.write": {
            "self.hash.update(data) => pass": f"{FILES}a_file_is_replaced_at_once_and_described",
            "self.num_bytes += length => self.num_bytes += len(data) // 2": (
                f"{FILES}a_file_is_replaced_at_once_and_described"
            ),
        },
        "sync_folder": {
            "os.fsync(descriptor) => pass": ORDER,
        },
    },
    "checkpoint/manifest.py": {
        "read_manifest": {
            "manifest.get('blake2b') != _checksum(manifest) => False": DAMAGE,
            "folder.name != tag_of(step) => False": DAMAGE,
            "name.endswith('.pt') => False": DAMAGE,
            "files.keys() - found => found - found": DAMAGE,
        },
        "_fault.compare": {
            "found_hash.hexdigest() => entry['blake2b']": DAMAGE,
            "(found := path.stat().st_size) != entry['bytes'] => (found := path.stat().st_size) < 0": DAMAGE,
        },
        "check_files": {
            "by_size[part::num_parts] => by_size[part:1]": (f"{LOAD}each_checker_finds_the_damage_in_its_share"),
        },
        "write_manifest": {
            "sync_folder(folder) =>": ORDER,
        },
    },
    "checkpoint/save.py": {
        "Saver.begin.point": {
            "start.manifest['train_state']['best_step'] => start.manifest['train_state']['step']": TURNED,
            "(self.folder / 'best').unlink(missing_ok=True) => pass": TURNED,
            "start.is_named => False": (f"{LOAD}a_runs_own_named_checkpoint_is_used_once_and_then_its_newest"),
        },
        "Saver.save": {
            "_failures_on_main(self.check) or self._write(engine, state, part)"
            " => self._write(engine, state, part)": CHECKED,
            "is_last_chance or self.num_failures >= self.config.max_failures"
            " => self.num_failures >= self.config.max_failures": (
                f"{SAVE}a_failed_last_save_ends_the_run_and_earlier_ones_only_in_a_row"
            ),
            "self.num_failures >= self.config.max_failures => self.num_failures > self.config.max_failures": (
                f"{SAVE}a_failed_last_save_ends_the_run_and_earlier_ones_only_in_a_row"
            ),
            "self.num_failures = 0 => pass": (f"{SAVE}a_failed_last_save_ends_the_run_and_earlier_ones_only_in_a_row"),
            "self.saved_step = state.step => pass": (f"{SAVE}an_evaluation_is_added_to_its_own_checkpoint"),
        },
        "_failures_on_main.attempt": {
            "raise => return ['']": CHECKED,
            "try:\n    function()\nexcept LockLost:\n    ...\nexcept Exception as error:\n    ..."
            " => try:\n    function()\nexcept LockLost:\n    ...\nexcept KeyError as error:\n    ...": (
                "checkpoint/test_save.py::test_a_briefly_unreadable_lock_costs_a_checkpoint_but_not_the_run"
            ),
        },
        "Saver._publish": {
            "self.check() => pass": CHECKED,
            "self.check() => part.rename(self.folder / tag_of(state.step))\nself.check()": CHECKED,
            "part.rename(final)\nself._point(state) => self._point(state)\npart.rename(final)": ORDER,
        },
        "Saver._write_pointer": {
            "sync_folder(self.folder) =>": ORDER,
        },
        "Saver._point": {
            "state.best_step == state.step => True": f"{SAVE}best_is_the_step_of_the_best_evaluation",
            "('best', 'latest') if state.best_step == state.step else ('latest',) => ('latest',)": (
                f"{SAVE}best_is_the_step_of_the_best_evaluation"
            ),
        },
        "Saver.note": {
            "self.saved_step == state.step and (failures := _failures_on_main(renew))"
            " => (failures := _failures_on_main(renew))": (f"{SAVE}an_evaluation_is_added_to_its_own_checkpoint"),
        },
        "_delete_old": {
            "[tag for tag in tags(folder) if tag <= latest][:keep_last]"
            " => [tag for tag in tags(folder) if tag <= latest][:keep_last + 1]": (
                f"{LOAD}the_newest_the_best_and_latest_are_kept_and_no_leftovers"
            ),
            "{..., pointer(folder, 'best'), latest} => {..., latest}": (
                f"{LOAD}the_newest_the_best_and_latest_are_kept_and_no_leftovers"
            ),
            "tag not in kept and tag < latest => tag not in kept": (
                f"{LOAD}the_newest_the_best_and_latest_are_kept_and_no_leftovers"
            ),
        },
    },
    "checkpoint/load.py": {
        "restore": {
            "engine.load(start.path) => pass": f"{LOAD}another_runs_best_result_is_not_inherited",
            "start.is_own => True": f"{LOAD}another_runs_best_result_is_not_inherited",
            "best_top1=-1.0 =>": f"{LOAD}another_runs_best_result_is_not_inherited",
        },
        "newest_whole": {
            "tag < start.tag => tag != start.tag": OLDER,
            "[] if start.is_named else ... => [] if False else ...": DAMAGE,
        },
        "find": {
            "resume == 'none' or (resume == 'auto' and (not latest)) => resume == 'auto' and (not latest)": TAKEN,
            "resume == 'auto' or (latest and _has_begun_with(path, workdir)) => resume == 'auto'": ONCE,
            "Start(own, tag, is_own=True, is_named=True) => Start(own, tag, is_own=True, is_named=False)": TAKEN,
            "if not tag:\n    ... => if not tag:\n    return None\n    ...": (
                f"{LOAD}a_runs_own_named_checkpoint_is_used_once_and_then_its_newest"
            ),
        },
    },
    "checkpoint/folder.py": {
        "": {
            "frozenset(...) => frozenset(...) | {'seed'}": FREE,
            "frozenset(...) => frozenset(...) | {'losses.vitkd.alpha'}": FREE,
            "frozenset(...) => frozenset(...) | {'data.crop_scale'}": FREE,
            "frozenset(...) => frozenset(...) | {'teacher.checkpoint'}": FREE,
        },
        "check_settings": {
            "before.get(key) != now.get(key) and key not in free"
            " => before.get(key) != now.get(key) and False and (key not in free)": MAY_NOT,
            "LENGTH if run.extend else () => LENGTH": f"{FOLDER}a_longer_run_needs_an_explicit_option",
        },
        "_check_images": {
            "stored.get(split) != fingerprint_of(run.data, split) => False": IMAGES,
        },
        "is_finished": {
            "run.resume == 'none' or not (workdir / DONE).exists() => not (workdir / DONE).exists()": (
                f"{FOLDER}a_folder_with_done_is_finished_unless_the_run_starts_over"
            ),
        },
    },
    "train/identity.py": {
        "check_identity": {
            "[start.manifest['train_state']['data'], content] => [identity['inputs']['data.train'][0], content]": (
                f"{IDENTITY}an_earlier_versions_checkpoint_needs_its_config_and_the_same_training_images"
            ),
            "settings.get(key) != value and key not in free => key not in free and False": (
                f"{IDENTITY}settings_and_inputs_must_match_the_checkpoint"
            ),
        },
    },
    "train/introduction.py": {
        "describe_run": {
            "(folder / DONE).unlink(missing_ok=True) => pass": (
                f"{BEGUN}config_json_records_the_run_its_starts_and_its_models"
            ),
        },
        "_history": {
            "before['plan']['total_steps'] < total_steps => before['plan']['total_steps'] <= total_steps": (
                f"{BEGUN}config_json_keeps_the_steps_at_which_a_run_was_extended"
            ),
        },
    },
    "checkpoint/holder.py": {
        "start_time": {
            "stat[0] in 'ZX' => stat[0] in 'X'": f"{LOCK}a_zombie_is_dead",
        },
        "is_found": {
            "started == holder['start_time'] => True": (
                f"{LOCK}a_dead_process_of_this_machine_is_replaced_after_three_missed_heartbeats"
            ),
            "holder['machine'] != me['machine'] => False": BEATS,
        },
        "is_former_self": {
            "int(starts[0]) < int(starts[1]) => False": (
                f"{HOLDER}only_a_later_start_confirmed_by_slurm_takes_over_from_an_earlier_start"
            ),
        },
    },
    "checkpoint/lock.py": {
        "RunLock._beat": {
            "os.utime(self.path) => pass": f"{LOCK}the_holder_sends_heartbeats_and_ends_once_it_has_lost_the_lock",
            "os._exit(1) => return": f"{LOCK}the_holder_sends_heartbeats_and_ends_once_it_has_lost_the_lock",
        },
        "RunLock.check": {
            "found and found['token'] != self.me['token'] => False": (
                f"{LOCK}a_requeued_job_does_not_wait_for_its_earlier_start"
            ),
            "not found or found is UNKNOWN => not found": CHANGED,
        },
        "_create": {
            "'x' => 'w'": f"{LOCK}only_one_of_many_jobs_takes_over",
        },
        "RunLock._try": {
            "if not self._changes(claim, self.stale_s):\n    ... => pass": (f"{LOCK}a_dead_jobs_claim_is_removed"),
            "_read(self.path).get('token') != holder['token'] => False": (
                f"{LOCK}a_lock_that_changes_hands_during_a_takeover_is_left_alone"
            ),
            "not self._changes(claim, self.stale_s) => True": (f"{LOCK}a_running_jobs_claim_is_left_alone"),
        },
        "RunLock._changes": {
            "_heartbeat(path) != seen => False": BEATS,
        },
        "RunLock.release": {
            "_read(self.path).get('token') == self.me['token'] => True": (
                f"{LOCK}a_requeued_job_does_not_wait_for_its_earlier_start"
            ),
            "self.made_folder and (not any(self.path.parent.iterdir())) => not any(self.path.parent.iterdir())": (
                f"{LOCK}a_second_job_is_rejected_and_told_who_holds_the_lock"
            ),
        },
        "_read": {
            "re.fullmatch('\\\\w{1,64}', found['token']) => re.fullmatch('.{1,64}', found['token'])": (
                f"{LOCK}a_damaged_lock_neither_blocks_nor_causes_a_needless_or_busy_wait"
            ),
        },
    },
}
