"""Mistakes in vitkd_ds/checkpoint."""

FILES = "checkpoint/test_files.py::test_"
LOAD = "checkpoint/test_load.py::test_"
LOCK = "checkpoint/test_lock.py::test_"
HOLDER = "checkpoint/test_holder.py::test_"
FOLDER = "checkpoint/test_folder.py::test_"
BEGUN = "train/test_introduction.py::test_"
SAVE = "checkpoint/test_save.py::test_"
ON_DISK = f"{FILES}bytes_are_on_the_disk_before_the_name_appears"
ORDER = f"{SAVE}a_checkpoint_is_on_the_disk_before_it_has_its_name_and_named_before_latest_names_it"
CHECKED = f"{SAVE}a_job_that_lost_its_lock_publishes_nothing"
DAMAGE = f"{LOAD}damage_is_named_and_the_next_older_one_taken"
IDENTITY = "train/test_identity.py::test_"
OLDER = f"{LOAD}a_newer_one_of_a_time_line_that_was_left_is_not_taken_for_a_damaged_one"
TAKEN = f"{LOAD}a_named_checkpoint_is_taken_else_latest_and_not_a_newer_one_of_a_time_line_that_was_left"
ONCE = f"{LOAD}another_runs_checkpoint_starts_this_run_once_and_then_its_own_go_on"
FREE = f"{FOLDER}what_is_learned_is_not_free"
MAY_NOT = f"{FOLDER}settings_that_change_what_is_learned_may_not_change"
IMAGES = f"{FOLDER}a_finished_run_knows_its_images_whatever_they_are_called"
CHANGED = f"{LOCK}a_lock_that_somebody_changes_is_written_again_and_a_second_job_is_refused"
BEATS = f"{LOCK}a_job_of_another_host_lives_as_long_as_its_heart_beats"
TURNED = "checkpoint/test_save.py::test_a_run_that_turns_back_has_the_best_of_before"

MISTAKES = {
    "checkpoint/files.py": {
        "HashingFile.finish": {
            "os.fsync(self.file.fileno()) => pass": ON_DISK,
            "self.file.flush() =>": ON_DISK,
            "self.error is not None => False": (
                f"{FILES}a_write_that_the_disk_refuses_is_raised_at_the_end_and_not_through_the_writer"
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
            "by_size[part::num_parts] => by_size[part:1]": (
                f"{LOAD}each_of_several_checkers_finds_what_is_damaged_in_its_part"
            ),
        },
        "write_manifest": {
            "sync_folder(folder) =>": ORDER,
        },
    },
    "checkpoint/save.py": {
        "Saver.begin.point": {
            "start.manifest['train_state']['best_step'] => start.manifest['train_state']['step']": TURNED,
            "(self.folder / 'best').unlink(missing_ok=True) => pass": TURNED,
            "start.is_named => False": (
                f"{LOAD}a_named_checkpoint_of_its_own_starts_a_run_once_and_then_its_newest_goes_on"
            ),
        },
        "Saver.save": {
            "_failures_on_main(self.check) or self._write(engine, state, part)"
            " => self._write(engine, state, part)": CHECKED,
            "is_last_chance or self.num_failures >= self.config.max_failures"
            " => self.num_failures >= self.config.max_failures": (
                f"{SAVE}a_failure_at_the_last_chance_ends_the_run_and_others_do_only_in_a_row"
            ),
            "self.num_failures >= self.config.max_failures => self.num_failures > self.config.max_failures": (
                f"{SAVE}a_failure_at_the_last_chance_ends_the_run_and_others_do_only_in_a_row"
            ),
            "self.num_failures = 0 => pass": (
                f"{SAVE}a_failure_at_the_last_chance_ends_the_run_and_others_do_only_in_a_row"
            ),
            "self.saved_step = state.step => pass": (f"{SAVE}an_evaluation_follows_into_its_own_checkpoint"),
        },
        "_failures_on_main.attempt": {
            "raise => return ['']": CHECKED,
            "try:\n    function()\nexcept LockLost:\n    ...\nexcept Exception as error:\n    ..."
            " => try:\n    function()\nexcept LockLost:\n    ...\nexcept KeyError as error:\n    ...": (
                "checkpoint/test_save.py::"
                "test_a_lock_that_cannot_be_read_for_a_moment_costs_a_checkpoint_and_not_the_run"
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
            " => (failures := _failures_on_main(renew))": (f"{SAVE}an_evaluation_follows_into_its_own_checkpoint"),
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
            "engine.load(start.path) => pass": f"{LOAD}the_best_of_another_run_is_not_this_runs",
            "start.is_own => True": f"{LOAD}the_best_of_another_run_is_not_this_runs",
            "best_top1=-1.0 =>": f"{LOAD}the_best_of_another_run_is_not_this_runs",
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
                f"{LOAD}a_named_checkpoint_of_its_own_starts_a_run_once_and_then_its_newest_goes_on"
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
            "LENGTH if run.extend else () => LENGTH": f"{FOLDER}a_longer_run_must_be_asked_for",
        },
        "_check_images": {
            "stored.get(split) != fingerprint_of(run.data, split) => False": IMAGES,
        },
        "is_finished": {
            "run.resume == 'none' or not (workdir / DONE).exists() => not (workdir / DONE).exists()": (
                f"{FOLDER}a_finished_folder_is_one_with_done_unless_all_begins_anew"
            ),
        },
    },
    "train/identity.py": {
        "check_identity": {
            "[start.manifest['train_state']['data'], content] => [identity['inputs']['data.train'][0], content]": (
                f"{IDENTITY}a_checkpoint_of_an_earlier_version_needs_the_config_beside_it_and_the_same_training_images"
            ),
            "settings.get(key) != value and key not in free => key not in free and False": (
                f"{IDENTITY}settings_and_inputs_must_be_those_of_the_checkpoint"
            ),
        },
    },
    "train/introduction.py": {
        "describe_run": {
            "(folder / DONE).unlink(missing_ok=True) => pass": f"{BEGUN}config_json_says_what_was_run_by_what",
        },
        "_history": {
            "before['plan']['total_steps'] < total_steps => before['plan']['total_steps'] <= total_steps": (
                f"{BEGUN}config_json_keeps_the_steps_at_which_a_run_was_made_longer"
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
                f"{HOLDER}only_a_later_start_that_slurm_has_confirmed_takes_over_from_its_former_self"
            ),
        },
    },
    "checkpoint/lock.py": {
        "RunLock._beat": {
            "os.utime(self.path) => pass": f"{LOCK}the_holders_heart_beats_and_it_ends_when_it_lost_the_lock",
            "os._exit(1) => return": f"{LOCK}the_holders_heart_beats_and_it_ends_when_it_lost_the_lock",
        },
        "RunLock.check": {
            "found and found['token'] != self.me['token'] => False": (
                f"{LOCK}the_requeue_of_a_job_does_not_wait_for_its_former_self"
            ),
            "not found or found is UNKNOWN => not found": CHANGED,
        },
        "_create": {
            "'x' => 'w'": f"{LOCK}of_many_jobs_one_takes_over",
        },
        "RunLock._try": {
            "if not self._changes(claim, self.stale_s):\n    ... => pass": (
                f"{LOCK}a_claim_that_a_dead_job_left_does_not_stay"
            ),
            "_read(self.path).get('token') != holder['token'] => False": (
                f"{LOCK}a_lock_that_changes_hands_during_a_takeover_is_left_alone"
            ),
            "not self._changes(claim, self.stale_s) => True": (f"{LOCK}a_claim_of_a_job_that_lives_is_left_alone"),
        },
        "RunLock._changes": {
            "_heartbeat(path) != seen => False": BEATS,
        },
        "RunLock.release": {
            "_read(self.path).get('token') == self.me['token'] => True": (
                f"{LOCK}the_requeue_of_a_job_does_not_wait_for_its_former_self"
            ),
            "self.made_folder and (not any(self.path.parent.iterdir())) => not any(self.path.parent.iterdir())": (
                f"{LOCK}a_second_job_is_refused_and_told_who_has_it"
            ),
        },
        "_read": {
            "re.fullmatch('\\\\w{1,64}', found['token']) => re.fullmatch('.{1,64}', found['token'])": (
                f"{LOCK}a_damaged_lock_does_not_block_and_is_not_waited_for_in_vain_or_busily"
            ),
        },
    },
}
