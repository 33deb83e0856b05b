"""Mistakes in vitkd_ds/engine."""

CLIP = "engine/test_clip.py::"
OPTIMIZERS = "engine/test_optimizers.py::"
PROCESSES = "engine/test_processes.py::"
CONFIG = "engine/test_ds_config.py::"
PLAIN = "train/test_plain_torch.py"
CLIPPED = f"{CLIP}test_clipping_equals_torchs"
NAN = f"{CLIP}test_a_gradient_whose_norm_is_not_finite_becomes_nan_everywhere"
LEFT_OUT = f"{OPTIMIZERS}test_a_skipped_update_changes_neither_weights_nor_moments_nor_average"
AVERAGE = f"{OPTIMIZERS}test_updates_equal_adamws_and_an_average_starts_at_the_first_weights"
SLURM = f"{PROCESSES}test_slurms_variables_become_ranks_and_plain_srun_gives_the_first_nodes_address"
CPUS = f"{PROCESSES}test_a_rank_uses_its_slurm_tasks_cpus_or_a_share_of_the_available_ones"
REFUSED = f"{CONFIG}test_keys_that_do_not_belong_in_a_file_are_rejected_with_file_and_key"
UNFIT = f"{CONFIG}test_a_file_whose_stage_norm_or_clipping_differs_from_the_engines_is_rejected"
COMPILED = f"{CONFIG}test_communication_does_not_overlap_a_fully_compiled_student_and_auto_elsewhere_is_rejected"
PACE = (
    "engine/test_engines.py::test_a_host_that_is_ahead_keeps_two_blocks_on_the_device_and_of_a_shard_more_if_they_fit"
)
AGREE = f"{PROCESSES}test_a_failure_on_one_rank_is_known_on_all"
ENGINES = "engine/test_engines.py::"
GATHERED = f"{ENGINES}test_terms_that_gather_make_two_ranks_train_like_one"
FLAT = "engine/test_flat.py::test_a_shared_weight_is_stored_once_and_gets_the_gradients_of_both_uses"
GROUPS = "engine/test_flat.py::test_groups_keep_their_settings_and_a_long_one_is_split_between_weights"
VIEWS = "engine/test_flat.py::test_views_stay_until_released_but_views_of_one_call_do_not"
BLOCK = "engine/test_flat.py::test_a_block_is_frozen_in_eval_mode_and_has_one_parameter"
WHOLE = "engine/test_flat.py::test_whole_weights_are_distributed_and_all_ranks_have_shards_of_one_even_length"
STATE = f"{OPTIMIZERS}test_an_optimizer_creates_exactly_the_state_it_declares"
DECAY = f"{OPTIMIZERS}test_weights_decay_by_the_setting_except_those_the_distiller_exempts"
READ = "engine/test_state_files.py::test_a_rank_finds_its_shard_by_weight_name"
LAYOUT = f"{CONFIG}test_the_layout_in_a_manifest_differs_with_stage_precision_and_ranks"

MISTAKES = {
    "engine/ranks.py": {
        "from_main": {
            "src=0 => src=1": AGREE,
        },
        "together": {
            "error is None or isinstance(error, ValueError) => isinstance(error, ValueError)": AGREE,
            "error or (RefusedElsewhere if is_refused else FailedElsewhere)('; '.join(failed))"
            " => RefusedElsewhere('; '.join(failed))": AGREE,
        },
        "on_main": {
            "_outcome(function) if rank() == 0 else (None, None) => _outcome(function)": AGREE,
        },
        "from_all": {
            "torch_dist.all_gather_object(values, value) => pass": AGREE,
        },
        "gather": {
            "gather_dim=0 => gather_dim=-1": GATHERED,
            "values.contiguous => values.detach": GATHERED,
        },
        "all_true": {
            "torch_dist.ReduceOp.MIN => torch_dist.ReduceOp.MAX": AGREE,
        },
    },
    "engine/flat.py": {
        "FlatModule.__init__": {
            "remove_duplicate=False => remove_duplicate=True": FLAT,
            "group.weight_decay => 0.0": GROUPS,
            "runs[ranks.rank()] => runs[0]": WHOLE,
            "start += len(padding) =>": WHOLE,
            "{names[p]: p.shape for p in run} => {names[p]: p.shape for p in reversed(run)}": FLAT,
        },
        "_cut": {
            "_numel(run) + p.numel() > max_numel => _numel(run) + p.numel() >= max_numel + 10 ** 9": GROUPS,
        },
        "_deal": {
            "reverse=True => reverse=False": WHOLE,
        },
        "FlatModule.call": {
            "self._put(self.views(flats)) =>": VIEWS,
            "self.release() =>": VIEWS,
        },
        "FlatBlock.__init__": {
            "self.requires_grad_(False) =>": BLOCK,
            "block.eval() => block": BLOCK,
        },
    },
    "engine/clip.py": {
        "clip_gradients": {
            "torch.float64 => torch.float32": f"{CLIP}test_squares_are_summed_in_fp64",
            "min=1.0 => min=0.0": f"{CLIP}test_without_clipping_every_bit_stays_and_the_norm_is_known",
            "1.0 / clip => 1.0 + 0 * clip": CLIPPED,
            "(norm < torch.inf) & (sums[-2] == 0) => norm < torch.inf": (
                f"{CLIP}test_veto_and_count_are_returned_with_the_norm_and_a_veto_acts_like_a_nan_gradient"
            ),
            "norm < torch.inf => norm <= torch.inf": NAN,
            "[*(square.float() for square in squares), veto, count]"
            " => [*(square.float() for square in squares), count, veto]": (
                f"{CLIP}test_veto_and_count_are_returned_with_the_norm_and_a_veto_acts_like_a_nan_gradient"
            ),
            "1 + 0 * norm => torch.ones(())": NAN,
        },
    },
    "engine/optimizers/base.py": {
        "Optimizer.step": {
            "1 - self.ema_decay => self.ema_decay": AVERAGE,
            "p.detach().clone => p.detach": AVERAGE,
            "self.ema_decay and 'ema' not in self.state[p] => 'ema' not in self.state[p]": AVERAGE,
            "part = part * (1 - self.leave_out) => pass": LEFT_OUT,
            "return None => pass": LEFT_OUT,
        },
        "state_bytes": {
            "group.num_states + averages => group.num_states": STATE,
        },
    },
    "engine/optimizers/adamw.py": {
        "Choice.__init__": {
            "betas=optim.betas => betas=(0.9, 0.999)": PLAIN,
            "eps=optim.eps => eps=1e-8": PLAIN,
            "optim.ema_decay => 0.0": PLAIN,
        },
        "Choice.groups": {
            "weight_decay=optim.weight_decay => weight_decay=0.05": DECAY,
            "weight_decay=0.0 => weight_decay=optim.weight_decay": DECAY,
        },
    },
    "engine/student.py": {
        "StudentEngine.__init__": {
            "run.optim.clip_grad_norm => 0.0": PLAIN,
        },
        "StudentEngine.set_lr": {
            "group['lr'] = lr => pass": PLAIN,
        },
        "student_ds_config": {
            "{**..., ...: accumulation_steps, **...} => {**..., ...: 1, **...}": PLAIN,
        },
        "StudentEngine.weights_of": {
            "part.data.copy_(original) => pass": PLAIN,
            "... if average else () => ... if not average else ()": PLAIN,
        },
    },
    "engine/processes.py": {
        "set_rank_variables": {
            "int(environ['SLURM_STEP_NUM_TASKS']) > 1 => int(environ['SLURM_STEP_NUM_TASKS']) > 0": (
                f"{PROCESSES}test_a_process_without_a_launcher_is_one_rank_with_its_own_port"
            ),
            "20000 + int(environ['SLURM_JOB_ID']) % 12000 => 20000 * int(environ['SLURM_JOB_ID']) % 12000": SLURM,
            "(*SLURM_NAMES, 'MASTER_ADDR', 'MASTER_PORT') => ('MASTER_ADDR', 'MASTER_PORT')": (
                f"{PROCESSES}test_a_rank_without_a_world_is_rejected"
            ),
        },
        "": {
            "{'RANK': 'SLURM_PROCID', 'LOCAL_RANK': 'SLURM_LOCALID', **...}"
            " => {'RANK': 'SLURM_LOCALID', 'LOCAL_RANK': 'SLURM_PROCID', **...}": SLURM,
        },
        "choose_device": {
            "local_rank >= num_devices => local_rank > num_devices": (
                f"{PROCESSES}test_local_rank_is_the_device_number"
            ),
        },
        "num_cpus": {
            "allowed // local_world_size(environ) => allowed": CPUS,
            "max(1, allowed // local_world_size(environ)) => max(0, allowed // local_world_size(environ))": CPUS,
        },
        "local_world_size": {
            "int(times or 1) => 1": f"{PROCESSES}test_the_number_of_local_ranks_comes_from_any_launcher",
        },
        "check_gpu_is_used": {
            "signs and get_accelerator().device_name() == 'cpu' and ... => signs and ...": (
                (
                    f"{PROCESSES}test_a_gpu_that_torch_cannot_use_is_rejected_unless_the_cpu_is_asked_for",
                    "on a machine without a GPU the accelerator is always the CPU",
                )
            ),
        },
    },
    "engine/ds_config.py": {
        "most_blocks": {
            "2 => 3": PACE,
            "placement == 'shard' => placement != 'none'": PACE,
        },
        "": {
            "not is_alone and (not is_compiled) => not is_alone": COMPILED,
            "not is_alone and (not is_compiled) => not is_compiled": f"{CONFIG}test_auto_follows_the_number_of_ranks",
            "2 ** 62 if is_alone else 0 => 0 if is_alone else 2 ** 62": (
                f"{CONFIG}test_auto_follows_the_number_of_ranks"
            ),
        },
        "load_ds_config": {
            "('auto', owned[key]) => ('auto', config[key])": REFUSED,
            "key in config and key not in owned => False": REFUSED,
            "config | owned => owned | config": (
                f"{CONFIG}test_auto_or_an_equal_number_becomes_the_recipes_and_the_rest_stays"
            ),
        },
        "layout": {
            "{'world_size': world_size, **...} => {'world_size': 1, **...}": LAYOUT,
            "is_bf16(config) => True": LAYOUT,
        },
        "check_student": {
            "not only_bf16 => only_bf16": UNFIT,
            "autocast.get('enabled') => False": UNFIT,
        },
        "bucket_size": {
            "500000000 => 200000000": f"{CONFIG}test_a_bucket_is_deepspeeds_unless_the_file_gives_one",
        },
    },
    "engine/teacher.py": {
        "Pace.wait": {
            "self._left.popleft()[0].synchronize => self._left.popleft": PACE,
            "sum(size for _, size in self._left) => len(self._left) * self._largest": (
                "engine/test_pace.py::test_teachers_that_run_in_turn_share_one_limit_on_blocks_gathered_ahead"
            ),
        },
        "Pace.__init__": {
            "block.register_forward_hook => block.register_forward_pre_hook": PACE,
        },
        "Teacher.__init__": {
            "runs_ahead() and (not keeps_whole(config.placement)) => runs_ahead()": PACE,
        },
    },
    "engine/state_files.py": {
        "_cut": {
            "max(0, ranks.rank() * size - places[name].start) => 0": READ,
        },
        "_fragments": {
            "min(start + place.shape.numel(), size) => size": READ,
        },
        "load_file": {
            "weights_only=True => weights_only=False": (
                "checkpoint/test_load.py::test_code_in_a_state_file_is_not_run_even_with_a_matching_manifest"
            ),
            "_first_bytes(Path(path)) != b'PK\\x03\\x04' => _first_bytes(Path(path)) == b'never'": (
                "checkpoint/test_load.py::test_code_in_a_state_file_is_not_run_even_with_a_matching_manifest"
            ),
        },
        "": {
            "[LossScaler, ZeroStageEnum, fragment_address] => [print, LossScaler, ZeroStageEnum, fragment_address]": (
                "checkpoint/test_load.py::test_code_in_a_state_file_is_not_run_even_with_a_matching_manifest"
            ),
        },
    },
}
