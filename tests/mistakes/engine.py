"""Mistakes in vitkd_ds/engine."""

OPTIMIZER, PROCESSES, CONFIG = "engine/test_optimizer.py::", "engine/test_processes.py::", "engine/test_ds_config.py::"
PLAIN = "train/test_plain_torch.py"
CLIPPED = f"{OPTIMIZER}test_it_is_torchs_clipping"
NAN = f"{OPTIMIZER}test_a_gradient_whose_norm_is_not_finite_becomes_nan_everywhere"
LEFT_OUT = f"{OPTIMIZER}test_an_update_that_is_not_wanted_changes_neither_weights_nor_moments_nor_average"
AVERAGE = f"{OPTIMIZER}test_updates_are_adamws_and_an_average_starts_from_the_first_weights_and_follows_the_formula"
SLURM = f"{PROCESSES}test_slurms_variables_become_ranks_and_under_srun_alone_the_first_nodes_address_is_slurms_own"
CPUS = f"{PROCESSES}test_a_rank_takes_what_slurm_gave_its_task_or_shares_the_cpus_it_may_use"
REFUSED = f"{CONFIG}test_what_does_not_belong_in_a_file_is_refused_with_file_and_key"
UNFIT = f"{CONFIG}test_a_file_with_another_stage_norm_or_clipping_than_the_engines_is_refused"
COMPILED = (
    f"{CONFIG}test_communication_overlaps_nothing_where_the_student_is_compiled_as_a_whole_"
    "and_auto_elsewhere_is_refused"
)
PACE = (
    "engine/test_engines.py::"
    "test_a_host_that_is_ahead_has_two_offloaded_blocks_on_the_device_and_of_a_shard_as_many_more_as_have_room"
)
AGREE = f"{PROCESSES}test_what_fails_on_one_rank_is_known_on_all"
ENGINES = "engine/test_engines.py::"
GATHERED = f"{ENGINES}test_terms_that_gather_make_two_ranks_train_as_one"
FLAT, GROUPS, VIEWS, BLOCK = (f"engine/test_flat.py::test_{name}" for name in (
    "a_shared_weight_is_one_and_takes_the_gradients_of_both_places",
    "groups_keep_their_settings_and_a_long_one_is_cut_between_weights",
    "views_stay_until_they_are_released_and_those_of_a_call_do_not",
    "a_block_is_frozen_in_eval_mode_and_one_parameter",
))  # fmt: skip
LAYOUT = f"{CONFIG}test_the_layout_in_a_manifest_differs_with_stage_precision_and_ranks"

MISTAKES = {
    "engine/ranks.py": [
        ("broadcast_object_list(box, src=0)", "broadcast_object_list(box, src=1)", AGREE),
        ("error is None or isinstance(error, ValueError)", "isinstance(error, ValueError)", AGREE),
        ("raise error or (RefusedElsewhere if is_refused else FailedElsewhere)", "raise (RefusedElsewhere)", AGREE),
        ("_outcome(function) if rank() == 0 else None", "_outcome(function)", AGREE),
        ("torch_dist.all_gather_object(values, value)", "pass", AGREE),
        ("gather_dim=0", "gather_dim=-1", GATHERED),
        ("values.contiguous(), gather_dim=0", "values.detach(), gather_dim=0", GATHERED),
        ("op=torch_dist.ReduceOp.MIN", "op=torch_dist.ReduceOp.MAX", AGREE),
    ],
    "engine/flat.py": [
        ('group | {"params": flats}', '{"params": flats}', GROUPS),
        ("remove_duplicate=False", "remove_duplicate=True", FLAT),
        ("> max_numel:", ">= max_numel + 10**9:", GROUPS),
        ("        self._put(self.views(flats))\n        result", "        result", VIEWS),
        ("        self.release()\n        return result", "        return result", VIEWS),
        ("        self.requires_grad_(False)\n", "", BLOCK),
        ("self._modules.pop(\"module\").eval()", "self._modules.pop(\"module\")", BLOCK),
        ("{names[p]: p.shape for p in params}", "{names[p]: p.shape for p in reversed(params)}", FLAT),
    ],
    "engine/optimizer.py": [
        ("2, dtype=torch.float64", "2, dtype=torch.float32", f"{OPTIMIZER}test_squares_are_summed_in_fp64"),
        ("min=1.0) if max_norm", "min=0.0) if max_norm",
         f"{OPTIMIZER}test_where_nothing_is_clipped_every_bit_stays_and_the_norm_is_known"),
        ("scale = 1.0 / clip", "scale = 1.0 + 0 * clip", CLIPPED),
        (" & (sums[-2] == 0)", "",
         f"{OPTIMIZER}test_veto_and_count_come_back_beside_the_norm_and_a_veto_is_a_gradient_of_nan"),
        ("torch.where((norm < torch.inf)", "torch.where((norm <= torch.inf)", NAN),
        ("veto, count]))", "count, veto]))",
         f"{OPTIMIZER}test_veto_and_count_come_back_beside_the_norm_and_a_veto_is_a_gradient_of_nan"),
        ("1 + 0 * norm", "torch.ones(())", NAN),
        ("part = 1 - self.ema_decay", "part = self.ema_decay", AVERAGE),
        ("(p, p.detach().clone())", "(p, p.detach())", AVERAGE),
        ("self.ema_decay and \"ema\" not in self.state[p]", '"ema" not in self.state[p]', AVERAGE),
        ("part = part * (1 - self.leave_out)", "pass", LEFT_OUT),
        ("            return None\n", "            pass\n", LEFT_OUT),
    ],
    "engine/student.py": [
        ('"betas": optim.betas, ', "", PLAIN),
        ('"eps": optim.eps, ', "", PLAIN),
        ('group["lr"] = lr', "pass", PLAIN),
        ("ema_decay=optim.ema_decay, **adamw", "ema_decay=0.0, **adamw", PLAIN),
        ("self._max_norm = run.optim.clip_grad_norm", "self._max_norm = 0.0", PLAIN),
        ("parameter_groups(run.optim.weight_decay)", "parameter_groups(0.05)", PLAIN),
        ('"gradient_accumulation_steps": accumulation_steps', '"gradient_accumulation_steps": 1', PLAIN),
        ("part.data.copy_(original)", "pass", PLAIN),
        ("group in optimizer.param_groups if average and", "group in optimizer.param_groups if not average and", PLAIN),
    ],
    "engine/processes.py": [
        ("int(environ[\"SLURM_NTASKS\"]) > 1", "int(environ[\"SLURM_NTASKS\"]) > 0",
         f"{PROCESSES}test_a_process_that_no_launcher_started_is_one_rank_with_a_port_of_its_own"),
        ("20000 + int", "20000 * int", SLURM),
        ('"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"',
         '"RANK": "SLURM_LOCALID", "LOCAL_RANK": "SLURM_PROCID"',
         SLURM),
        ("local_rank >= num_devices", "local_rank > num_devices",
         f"{PROCESSES}test_local_rank_is_the_number_of_the_ranks_device"),
        ("allowed // local_world_size(environ)", "allowed", CPUS),
        ("max(1, allowed //", "max(0, allowed //", CPUS),
        ("for _ in range(int(times or 1))", "for _ in range(1)",
         f"{PROCESSES}test_the_ranks_of_this_node_come_from_whichever_launcher_says_so"),
        ('get_accelerator().device_name() == "cpu" and environ', "environ",
         f"{PROCESSES}test_a_gpu_that_torch_cannot_use_is_refused_unless_the_cpu_is_asked_for",
         "on a machine without a GPU the accelerator is always the CPU"),
        ("*SLURM_NAMES, \"MASTER_ADDR\"", "\"MASTER_ADDR\"", f"{PROCESSES}test_a_rank_without_a_world_is_refused"),
    ],
    "engine/ds_config.py": [
        ("return 2 + (", "return 3 + (", PACE),
        ('if placement == "shard" else 0', 'if placement != "none" else 0', PACE),
        ("not is_alone and not is_compiled", "not is_alone",
         COMPILED),
        ("not is_alone and not is_compiled", "not is_compiled", f"{CONFIG}test_auto_follows_the_number_of_ranks"),
        ("2**62 if is_alone else 0", "0 if is_alone else 2**62", f"{CONFIG}test_auto_follows_the_number_of_ranks"),
        ('not in ("auto", owned[key])', 'not in ("auto", config[key])', REFUSED),
        ("if key in config and key not in owned:", "if False:", REFUSED),
        ("return config | owned", "return owned | config",
         f"{CONFIG}test_auto_becomes_the_recipes_number_which_may_stand_there_too_and_the_rest_stays"),
        ('"world_size": world_size,', '"world_size": 1,', LAYOUT),
        ('"bf16": is_bf16(config)', '"bf16": True', LAYOUT),
        ("or not only_bf16)", "or only_bf16)", UNFIT),
        ('autocast.get("enabled") and', "False and", UNFIT),
        ("500_000_000", "200_000_000", f"{CONFIG}test_a_bucket_is_deepspeeds_unless_the_file_gives_one"),
    ],
    "engine/pace.py": [
        ("self._left.popleft().synchronize()", "self._left.popleft()", PACE),
        ("block.register_forward_hook(self._leave)", "block.register_forward_pre_hook(self._leave)", PACE),
    ],
    "engine/teacher.py": [("runs_ahead() and not keeps_whole(run)", "runs_ahead()", PACE)],
    "engine/state_files.py": [
        ("weights_only=True", "weights_only=False",
         "checkpoint/test_load.py::test_code_in_a_state_file_is_not_run_even_with_a_fitting_manifest"),
        ('!= b"PK\\x03\\x04"', '== b"never"',
         "checkpoint/test_load.py::test_code_in_a_state_file_is_not_run_even_with_a_fitting_manifest"),
        ("ALLOWED = [LossScaler", "ALLOWED = [print, LossScaler",
         "checkpoint/test_load.py::test_code_in_a_state_file_is_not_run_even_with_a_fitting_manifest"),
    ],
}  # fmt: skip
