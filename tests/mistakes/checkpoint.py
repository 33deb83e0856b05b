"""Mistakes in vitkd_ds/checkpoint."""

FILES, LOAD, LOCK, FOLDER, SAVE = (
    f"checkpoint/test_{name}.py::test_" for name in ("files", "load", "lock", "folder", "save")
)
ON_DISK = f"{FILES}bytes_are_on_the_disk_before_the_name_appears"
ORDER = f"{SAVE}a_checkpoint_is_on_the_disk_before_it_has_its_name_and_named_before_latest_names_it"
CHECKED = f"{SAVE}a_job_that_lost_its_lock_publishes_nothing"
DAMAGE = f"{LOAD}damage_is_named_and_the_next_older_one_taken"
OTHER_DATA = f"{LOAD}other_images_or_steps_an_epoch_are_refused_before_anything_is_loaded"
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
    "checkpoint/files.py": [
        ("os.fsync(self.file.fileno())", "pass", ON_DISK),
        ("        self.file.flush()\n        os.fsync", "        os.fsync", ON_DISK),
        ("temporary.replace(path)", "path.write_bytes(temporary.read_bytes())", ON_DISK),
        ('path.with_name(f".{path.name}.tmp")', "path", f"{FILES}a_failed_write_leaves_the_old_file"),
        ("if self.error is not None:\n            raise self.error", "if False:\n            raise self.error",
         f"{FILES}a_write_that_the_disk_refuses_is_raised_at_the_end_and_not_through_the_writer"),
        ("self.hash.update(data)", "pass", f"{FILES}a_file_is_replaced_at_once_and_described"),
        ("self.num_bytes += length", "self.num_bytes += len(data) // 2",
         f"{FILES}a_file_is_replaced_at_once_and_described"),
        ("        os.fsync(descriptor)", "        pass", ORDER),
    ],
    "checkpoint/manifest.py": [
        ('manifest.get("blake2b") != _checksum(manifest)', "False", DAMAGE),
        ("if folder.name != tag_of(step):", "if False:", DAMAGE),
        ("found_hash.hexdigest() == entry", "entry['blake2b'] == entry", DAMAGE),
        ('.st_size) != entry["bytes"]', ".st_size) < 0", DAMAGE),
        ('if name.endswith(".pt")', "if False", DAMAGE),
        ("files.keys() - found", "found - found", DAMAGE),
        ("by_size[part::num_parts]", "by_size[part:1]",
         f"{LOAD}each_of_several_checkers_finds_what_is_damaged_in_its_part"),
        ("    sync_folder(folder)\n", "", ORDER),
    ],
    "checkpoint/save.py": [
        ('["best_step"])', '["step"])', TURNED),
        ('(self.folder / "best").unlink(missing_ok=True)', "pass", TURNED),
        ("self._checked() or self._write(", "self._write(", CHECKED),
        ("        self._checked()  # a lock", "        pass  # a lock", CHECKED),
        ("            except OSError as error:\n                return [f",
         "            except KeyError as error:\n                return [f",
         "checkpoint/test_save.py::test_a_lock_that_cannot_be_read_for_a_moment_costs_a_checkpoint_and_not_the_run"),
        ("        self.check()  # again", "        pass  # again", CHECKED),
        ("        self.check()  # again",
         "        part.rename(self.folder / tag_of(state.step)); self.check()  # again", CHECKED),
        ("if is_last_chance or self", "if self",
         f"{SAVE}a_failure_at_the_last_chance_ends_the_run_and_others_do_only_in_a_row"),
        ("self.num_failures >= self.config.max_failures", "self.num_failures > self.config.max_failures",
         f"{SAVE}a_failure_at_the_last_chance_ends_the_run_and_others_do_only_in_a_row"),
        ("self.num_failures, self.saved_step = 0, state.step", "self.saved_step = state.step",
         f"{SAVE}a_failure_at_the_last_chance_ends_the_run_and_others_do_only_in_a_row"),
        ("self.num_failures, self.saved_step = 0, state.step", "self.num_failures = 0",
         f"{SAVE}an_evaluation_follows_into_its_own_checkpoint"),
        ("        part.rename(final)\n        self._point(state)",
         "        self._point(state)\n        part.rename(final)", ORDER),
        ("        sync_folder(self.folder)\n", "", ORDER),
        ('("best", "latest") if state.best_step == state.step else', '("best", "latest") if True else',
         f"{SAVE}best_is_the_step_of_the_best_evaluation"),
        ('("best", "latest") if state.best_step == state.step else ("latest",)', '("latest",)',
         f"{SAVE}best_is_the_step_of_the_best_evaluation"),
        ("if self.saved_step == state.step and", "if", f"{SAVE}an_evaluation_follows_into_its_own_checkpoint"),
        ("[:keep_last]", "[: keep_last + 1]", f"{LOAD}the_newest_the_best_and_latest_are_kept_and_no_leftovers"),
        (', pointer(folder, "best"), latest}', ", latest}",
         f"{LOAD}the_newest_the_best_and_latest_are_kept_and_no_leftovers"),
        ("if tag not in kept and tag < latest", "if tag not in kept",
         f"{LOAD}the_newest_the_best_and_latest_are_kept_and_no_leftovers"),
        ("            if start.is_named:", "            if False:",
         f"{LOAD}a_named_checkpoint_of_its_own_starts_a_run_once_and_then_its_newest_goes_on"),
    ],
    "checkpoint/load.py": [
        ("state.steps_per_epoch != steps_per_epoch", "False", OTHER_DATA),
        ("state.data != data", "False", OTHER_DATA),
        ("engine.load(start.path)", "pass", f"{LOAD}the_best_of_another_run_is_not_this_runs"),
        ("return state if start.is_own else", "return state if True else",
         f"{LOAD}the_best_of_another_run_is_not_this_runs"),
        ("best_top1=-1.0, best_step=0)", "best_step=0)", f"{LOAD}the_best_of_another_run_is_not_this_runs"),
        ("if tag < start.tag]", "if tag != start.tag]", OLDER),
        ("[] if start.is_named else", "[] if False else", DAMAGE),
        ('resume == "none" or (resume == "auto"', '(resume == "auto"', TAKEN),
        ("or (latest and _has_begun_with(path, workdir))", "", ONCE),
        ("return Start(own, tag, is_own=True, is_named=True)", "return Start(own, tag, is_own=True, is_named=False)",
         TAKEN),
        ("        raise ValueError(f\"--resume must be auto",
         "        return None\n        raise ValueError(f\"--resume must be auto",
         f"{LOAD}a_named_checkpoint_of_its_own_starts_a_run_once_and_then_its_newest_goes_on"),
    ],
    "checkpoint/folder.py": [
        ('"workdir", "resume",', '"workdir", "seed", "resume",', FREE),
        ('"workdir", "resume",', '"workdir", "losses.vitkd.alpha", "resume",', FREE),
        ('"data.on_bad",', '"data.on_bad", "data.crop_scale",', FREE),
        ('"teacher.placement",', '"teacher.placement", "teacher.checkpoint",', FREE),
        ("if before.get(key) != now.get(key) and", "if before.get(key) != now.get(key) and False and", MAY_NOT),
        ("set(LENGTH if run.extend else ())", "set(LENGTH)", f"{FOLDER}a_longer_run_must_be_asked_for"),
        ("stored[split] != fingerprint_of(run.data, split)", "False", IMAGES),
        ('if run.resume == "none" or not', "if not",
         f"{FOLDER}a_finished_folder_is_one_with_done_unless_all_begins_anew"),
        ("(workdir / DONE).unlink(missing_ok=True)", "pass", f"{FOLDER}config_json_says_what_was_run_by_what"),
        ('before["plan"]["total_steps"] < total_steps', 'before["plan"]["total_steps"] <= total_steps',
         f"{FOLDER}config_json_keeps_the_steps_at_which_a_run_was_made_longer"),
    ],
    "checkpoint/lock.py": [
        ("os.utime(self.path)", "pass", f"{LOCK}the_holders_heart_beats_and_it_ends_when_it_lost_the_lock"),
        ("                os._exit(1)", "                return",
         f"{LOCK}the_holders_heart_beats_and_it_ends_when_it_lost_the_lock"),
        ('if found and found["token"] != self.me["token"]:', "if False:",
         f"{LOCK}the_requeue_of_a_job_does_not_wait_for_its_former_self"),
        ("os.link(source, path)", "path.write_text(source.read_text())", f"{LOCK}of_many_jobs_one_takes_over"),
        ('stat[0] in "ZX"', 'stat[0] in "X"', f"{LOCK}a_zombie_is_dead"),
        ("                    claim.unlink()", "                    pass",
         f"{LOCK}a_claim_that_a_dead_job_left_does_not_stay"),
        ('if _read(self.path).get("token") != holder["token"]:', "if False:",
         f"{LOCK}a_lock_that_changes_hands_during_a_takeover_is_left_alone"),
        ("> self.stale_s:\n", "> 0:\n", f"{LOCK}a_claim_of_a_job_that_lives_is_left_alone"),
        ("if _heartbeat(self.path) != seen:", "if False:", BEATS),
        ('return _start_time(holder["pid"]) == holder["start_time"]', 'return bool(_start_time(holder["pid"]))',
         f"{LOCK}a_dead_process_of_this_machine_is_replaced_at_once"),
        ('if holder["machine"] == me["machine"]:', "if True:", BEATS),
        ('holder["restart"] != me["restart"]', "False",
         f"{LOCK}the_requeue_of_a_job_does_not_wait_for_its_former_self"),
        ('if _read(self.path).get("token") == self.me["token"]:', "if True:",
         f"{LOCK}the_requeue_of_a_job_does_not_wait_for_its_former_self"),
        ("if self.made_folder and not", "if not", f"{LOCK}a_second_job_is_refused_and_told_who_has_it"),
        ("if not found or found is UNKNOWN:", "if not found:", CHANGED),
        ("r\"\\w{1,64}\", found", "r\".{1,64}\", found",
         f"{LOCK}a_damaged_lock_does_not_block_and_is_not_waited_for_in_vain_or_busily"),
    ],
}  # fmt: skip
