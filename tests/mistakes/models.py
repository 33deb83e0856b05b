"""Mistakes in vitkd_ds/models."""

DISTILLER = "models/test_distiller.py::"
FEATURES = "models/test_features.py::"
NUMBERS = f"{DISTILLER}test_each_number_of_a_term_reaches_its_loss"
BALANCED = f"{DISTILLER}test_balanced_terms_use_the_current_factors_and_the_next_ones_are_learned"
GROUPS = f"{DISTILLER}test_norms_biases_and_weights_listed_by_timm_do_not_decay"
HOOKS = f"{FEATURES}test_features_match_hooks_on_the_blocks_without_prefix_tokens"
NORMALIZED = "models/test_normalization.py::test_normalisation_follows_the_slow_formula_and_is_rounded_once"
ATTENTION = "models/test_selection.py::test_the_attention_matches_timms_own_and_the_logits_match_the_model"
MAPS = "models/test_attention.py::test_maps_match_the_attention_inside_the_model_and_its_outputs_stay"
KEPT = "models/test_selection.py::test_the_teacher_sees_the_chosen_patches_at_their_positions"
UNFIT = "models/test_selection.py::test_models_whose_attention_cannot_choose_are_rejected"
PAIR = "models/test_pair.py::test_a_pair_may_differ_in_width_depth_and_grid"
BUILD = "models/test_build.py::"
WEIGHTS = "models/test_weights.py::"
PROBED = "models/test_foundation.py::test_a_probe_gives_a_headless_teacher_logits"
TERM_COST = "commands/plan/test_shapes.py::test_a_terms_cost_counts_its_matrix_products_and_autograds_memory[feature]"

MISTAKES = {
    "models/distiller.py": {
        "Distiller.forward": {
            "weights[name] * value => value": NUMBERS,
            "weights[name] => weights['ce']": NUMBERS,
            "weighted * factors_T => weighted": BALANCED,
            "torch.stack(list(values.values())) => weighted": BALANCED,
            "attention_BP.topk(number) => attention_BP.topk(number, largest=False)": (
                f"{DISTILLER}test_the_patches_that_the_student_attends_to_most_are_shown_to_the_teacher"
            ),
            "teachers.get(self._teachers[name]) => next(iter(teachers.values()), None)": (
                f"{DISTILLER}test_each_term_compares_the_teacher_that_it_names"
            ),
        },
        "Distiller.__init__": {
            "part_of(term)(term, ..., gather or alone) => part_of(term)(term, None, alone)": (
                f"{DISTILLER}test_dist_over_all_ranks_gathers_both_models_logits_and_dist_per_micro_batch_none"
            ),
            "Balance(len(self._terms), gather or alone) => Balance(len(self._terms), alone)": (
                f"{DISTILLER}test_factors_are_learned_from_all_ranks_terms"
            ),
            "student.set_distilled_training(True) => pass": (
                "models/test_variants.py::test_each_head_has_its_own_term_and_the_mean_of_both_answers_in_eval"
            ),
        },
        "Distiller.split_by_decay": {
            "p.ndim <= 1 or name in exempt => name in exempt": GROUPS,
            "p.ndim <= 1 or name in exempt => p.ndim <= 1": GROUPS,
            "f'student.{name}' => name": GROUPS,
            "p.requires_grad => True": GROUPS,
        },
    },
    "models/features.py": {
        "tap_features": {
            "list(blocks) => [b + 1 for b in blocks]": HOOKS,
            "patch_tokens(model, tokens) => tokens": HOOKS,
            "(..., 0) => (..., 1)": HOOKS,
            "final_BPD.mean(dim=1) => final_BPD[:, 0]": HOOKS,
        },
        "patch_tokens": {
            "getattr(model, 'num_prefix_tokens', 0) => getattr(model, 'num_prefix_tokens', 0) and 1": HOOKS,
            "features.flatten(1, 2) if is_channels_last else ... => features.flatten(1, 2) if False else ...": (
                f"{FEATURES}test_other_models_give_logits_and_their_last_map_and_an_error_if_blocks_are_tapped"
            ),
        },
        "_check_blocks": {
            "blocks[-1] >= len(model.blocks) => blocks[-1] > len(model.blocks)": (
                f"{FEATURES}test_blocks_out_of_order_or_range_are_rejected"
            ),
        },
        "features_of_logits": {
            "logits[1] => logits[0]": (
                "models/test_variants.py::test_each_head_has_its_own_term_and_the_mean_of_both_answers_in_eval"
            ),
        },
    },
    "models/normalization.py": {
        "_affine": {
            "255 * std => 256 * std": NORMALIZED,
            "-mean / std => -mean": NORMALIZED,
        },
        "Normalization.apply": {
            "torch.addcmul(shift_C11, images_BCHW.float(), scale_C11).to(dtype)"
            " => torch.addcmul(shift_C11.to(dtype), images_BCHW.to(dtype), scale_C11.to(dtype))": NORMALIZED,
        },
        "ResizedNormalization.apply": {
            "F.interpolate(images_BCHW.float(), size, **options).clamp(0, 255)"
            " => F.interpolate(images_BCHW.float(), size, **options)": (
                "models/test_foundation.py::test_images_are_resized_for_the_teacher_and_then_normalised"
            ),
            "True => False": "models/test_foundation.py::test_images_are_resized_for_the_teacher_and_then_normalised",
        },
        "_cached_affine": {
            "mode=False => mode=True": (
                "models/test_normalization.py::test_normalisation_first_used_in_inference_mode_still_works_in_training"
            ),
        },
    },
    "models/pair.py": {
        "check_pair": {
            "teacher_image_size or image_size => image_size": (
                "models/test_pair.py::test_a_teacher_of_another_kind_is_run_at_its_own_size"
            ),
            "teacher_grid => student_grid": PAIR,
            "PairInfo(student_dim, teacher_dim, student_grid, teacher_grid)"
            " => PairInfo(teacher_dim, student_dim, student_grid, teacher_grid)": PAIR,
            "0 <= block < depth => 0 <= block <= depth": (
                "models/test_pair.py::test_a_pair_with_other_classes_or_too_few_blocks_is_rejected"
            ),
            "teacher.num_classes and student.num_classes != teacher.num_classes"
            " => student.num_classes != teacher.num_classes": (
                "models/test_pair.py::test_a_teacher_without_classes_fits_any_student"
            ),
        },
    },
    "models/attention.py": {
        "mean_attention": {
            "scores_BANN.softmax(dim=-1).mean => scores_BANN.softmax(dim=-1).amax": ATTENTION,
            "attention.scale * query_BAND => query_BAND": ATTENTION,
        },
        "_queries_and_keys": {
            "F.linear(tokens_BND, attention.qkv.weight, bias) => attention.qkv(tokens_BND)": (
                f"{MAPS}[eva02_small_patch14_224]"
            ),
            "_rotated(attention, query_BAND, rope) => query_BAND": f"{MAPS}[eva02_base_patch14_224]",
        },
        "_rotated": {
            "half=attention.rotate_half => half=not attention.rotate_half": f"{MAPS}[vit_small_patch16_dinov3]",
        },
        "AttentionMaps._record": {
            "self._found is not None => True": (
                "models/test_attention.py::test_bf16_models_give_fp32_maps_and_each_call_has_its_own"
            ),
            "map_BNN[:, prefix:, prefix:] => map_BNN": f"{MAPS}[deit]",
        },
    },
    "models/selection.py": {
        "logits_and_attention": {
            "len(model.blocks) - 2 => len(model.blocks) - 1": ATTENTION,
            "...[:, 0, model.num_prefix_tokens:] => ...[:, 0, :-model.num_prefix_tokens]": ATTENTION,
        },
        "KeptTokens.forward": {
            "patches.gather(1, chosen) => patches[:, :chosen.shape[1]]": KEPT,
        },
        "check_selection": {
            "keep_tokens >= teacher.patch_embed.num_patches => keep_tokens > teacher.patch_embed.num_patches": UNFIT,
            "grids[0] != grids[1] => False": UNFIT,
        },
    },
    "models/linear_head.py": {
        "LinearHead.forward": {
            "final_BPD.mean(dim=1) => final_BPD[:, 0]": PROBED,
            "[pooled_BD, final_BPD.mean(dim=1)] => [final_BPD.mean(dim=1), pooled_BD]": PROBED,
        },
    },
    "models/cost.py": {
        "step_gflops": {
            "3 * costs['student']['gflops'] => 2 * costs['student']['gflops']": (
                "models/test_cost.py::test_a_training_step_costs_three_student_forwards_and_one_teacher_forward"
            ),
        },
        "cost_of": {
            "keep_patches(model, keep_tokens) => pass": (
                "models/test_variants.py::test_half_of_the_patches_halve_the_teachers_cost"
            ),
        },
        "term_cost": {
            "(two[0] - one[0], two[1] - one[1]) => one": TERM_COST,
        },
        "_run_term": {
            "for tensor in _tensors(teacher):\n    keep(tensor) =>": TERM_COST,
            "(... for place, tensor in kept.items() if place not in known)"
            " => (... for place, tensor in kept.items())": TERM_COST,
        },
    },
    "models/fit.py": {
        "_check_grid": {
            "not is_allowed => False": f"{BUILD}test_a_file_with_another_resolution_is_rejected_unless_allowed",
        },
        "_misfit_of_classifier": {
            "has_other_classes and names => False": (
                f"{BUILD}test_a_students_classifier_is_kept_only_for_the_classes_that_it_was_trained_for"
            ),
        },
        "_at_own_grid": {
            "adapt_layer_scale=True => adapt_layer_scale=False": (
                f"{WEIGHTS}test_each_family_loads_from_each_format_with_identical_logits"
            ),
        },
        "fit_state": {
            "model.reset_classifier(0) => pass": f"{BUILD}test_a_classifier_for_other_classes_is_dropped_and_reported",
        },
    },
    "models/build.py": {
        "build_teacher": {
            "model.requires_grad_(False) => model": (
                f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains"
            ),
            "model.requires_grad_(False).eval() => model.requires_grad_(False)": (
                f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains"
            ),
            "config.image_size or data.image_size => data.image_size": (
                "models/test_foundation.py::test_a_teacher_with_its_own_image_size_has_its_own_grid_and_cost"
            ),
        },
        "build_student": {
            "config.drop_path_rate => 0": f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains",
            "config.checkpoint_activations => False": (
                f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains"
            ),
        },
        "_load_file": {
            "_take_normalization(model, path) =>": (
                f"{BUILD}test_the_normalisation_comes_from_the_description_next_to_the_weights"
            ),
        },
        "_take_normalization": {
            "model.pretrained_cfg = model.pretrained_cfg | ... => pass": (
                f"{BUILD}test_the_normalisation_comes_from_the_description_next_to_the_weights"
            ),
        },
        "statistics_of": {
            "described = described | description_beside(file).get('normalization', {}) => pass": (
                f"{BUILD}test_a_students_statistics_match_the_built_model"
            ),
        },
    },
    "models/create.py": {
        "create": {
            "size % height or size % width => size % height and size % width": (
                f"{BUILD}test_other_models_and_arguments_are_rejected_by_name"
            ),
        },
    },
    "models/weights.py": {
        "_read_pickle": {
            "weights_only=True => weights_only=False": f"{WEIGHTS}test_a_pickle_that_runs_code_is_rejected_and_not_run",
        },
        "": {
            "('model', 'state_dict', 'model_state_dict', 'model_ema')"
            " => ('model_ema', 'model', 'state_dict', 'model_state_dict')": (
                f"{WEIGHTS}test_pickles_are_read_plain_or_from_a_container_that_takes_precedence_over_an_average"
            ),
        },
        "strip_prefixes": {
            "2 * sum((key.startswith(prefix) for key in state))"
            " => 1 * sum((key.startswith(prefix) for key in state))": (
                f"{WEIGHTS}test_nested_wrapper_prefixes_are_removed"
            ),
        },
        "_renamed": {
            "len(renamed) < len(new_names) => False": (
                f"{WEIGHTS}test_a_rare_prefix_stays_and_two_tensors_for_one_name_are_an_error"
            ),
        },
        "key_differences": {
            "found != wanted => False": f"{WEIGHTS}test_differences_name_a_few_keys_of_each_kind",
        },
    },
}
