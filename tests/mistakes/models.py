"""Mistakes in vitkd_ds/models."""

DISTILLER, FEATURES = "models/test_distiller.py::", "models/test_features.py::"
NUMBERS = f"{DISTILLER}test_each_number_of_a_term_is_that_of_its_loss"
BALANCED = f"{DISTILLER}test_balanced_terms_have_the_factors_of_the_step_and_those_of_the_next_are_learnt"
GROUPS = f"{DISTILLER}test_norms_biases_and_what_timm_names_do_not_decay"
HOOKS = f"{FEATURES}test_features_are_what_hooks_on_the_blocks_see_without_prefix_tokens"
NORMALIZED = "models/test_normalization.py::test_normalisation_follows_the_slow_formula_and_is_rounded_once"
ATTENTION = "models/test_selection.py::test_the_attention_is_the_one_inside_timm_and_the_logits_are_the_models"
KEPT = "models/test_selection.py::test_the_teacher_sees_the_chosen_patches_where_they_were"
UNFIT = "models/test_selection.py::test_models_whose_attention_cannot_choose_are_refused"
PAIR = "models/test_pair.py::test_a_pair_may_differ_in_width_depth_and_grid"
BUILD = "models/test_build.py::"
WEIGHTS = "models/test_weights.py::"
PROBED = "models/test_foundation.py::test_a_probe_gives_a_headless_teacher_logits"

TERM_COST = "commands/plan/test_shapes.py::test_a_term_is_charged_for_its_products_and_for_what_autograd_keeps[feature]"

MISTAKES = {
    "models/distiller.py": [
        ("weights[name] * value for name, value", "value for name, value", NUMBERS),
        ("weights[name] * value for name, value", "weights['ce'] * value for name, value", NUMBERS),
        ("weighted * factors_T", "weighted", BALANCED),
        ("self.balance(torch.stack(list(values.values())))", "self.balance(weighted)", BALANCED),
        ("gather or alone))", "alone))",
         f"{DISTILLER}test_dist_of_all_ranks_gathers_both_models_logits_and_that_of_the_micro_batch_none"),
        ("Balance(len(self._terms), gather or alone)", "Balance(len(self._terms), alone)",
         f"{DISTILLER}test_the_factors_are_learnt_of_all_ranks_terms"),
        ("p.ndim <= 1 or name in exempt", "name in exempt", GROUPS),
        ("p.ndim <= 1 or name in exempt", "p.ndim <= 1", GROUPS),
        ('f"student.{name}" for name in getattr', "name for name in getattr", GROUPS),
        ('undecayed, "weight_decay": 0.0}', 'undecayed, "weight_decay": weight_decay}', GROUPS),
        ('decayed, "weight_decay": weight_decay}', 'decayed, "weight_decay": 0.05}', GROUPS),
        ("if p.requires_grad:", "if True:", GROUPS),
        ("student.set_distilled_training(True)", "pass",
         "models/test_variants.py::test_each_head_has_its_own_term_and_the_mean_of_both_answers_in_eval"),
        ("topk(self.keep_tokens).indices", "topk(self.keep_tokens, largest=False).indices",
         f"{DISTILLER}test_the_patches_that_the_student_attends_to_most_are_shown_to_the_teacher"),
    ],
    "models/features.py": [
        ('indices=list(blocks), output_fmt="NLC"', 'indices=[b + 1 for b in blocks], output_fmt="NLC"', HOOKS),
        ("final_BPD = patch_tokens(model, tokens)", "final_BPD = tokens", HOOKS),
        ("tokens[:, 0] if tokens.ndim == 3 and has_class_token", "tokens[:, 1] if tokens.ndim == 3 and has_class_token",
         HOOKS),
        ("else final_BPD.mean(dim=1)", "else final_BPD[:, 0]", HOOKS),
        ('"num_prefix_tokens", 0) :]', '"num_prefix_tokens", 0) and 1 :]', HOOKS),
        ("return features.flatten(1, 2) if is_channels_last", "return features.flatten(1, 2) if False",
         f"{FEATURES}test_other_models_give_logits_and_their_last_map_and_say_so_where_blocks_are_tapped"),
        ("blocks[-1] >= len(model.blocks)", "blocks[-1] > len(model.blocks)",
         f"{FEATURES}test_blocks_that_do_not_ascend_within_the_model_are_refused"),
        ("logits[1])", "logits[0])",
         "models/test_variants.py::test_each_head_has_its_own_term_and_the_mean_of_both_answers_in_eval"),
    ],
    "models/normalization.py": [
        ("1 / (255 * std) for std", "1 / (256 * std) for std", NORMALIZED),
        ("[-mean / std for", "[-mean for", NORMALIZED),
        ("torch.addcmul(shift_C11, images_BCHW.float(), scale_C11).to(dtype)",
         "torch.addcmul(shift_C11.to(dtype), images_BCHW.to(dtype), scale_C11.to(dtype))", NORMALIZED),
        (".clamp(0, 255)", "",
         "models/test_foundation.py::test_images_are_resized_for_the_teacher_and_then_normalised"),
        ('"antialias": True', '"antialias": False',
         "models/test_foundation.py::test_images_are_resized_for_the_teacher_and_then_normalised"),
        ("inference_mode(mode=False)", "inference_mode(mode=True)",
         "models/test_normalization.py::test_normalisation_first_used_in_inference_mode_still_works_in_training"),
    ],
    "models/pair.py": [
        ("teacher_image_size or image_size)", "image_size)",
         "models/test_pair.py::test_a_teacher_of_another_kind_is_asked_at_its_own_size"),
        ("PairInfo(student_dim, teacher_dim, student_grid, teacher_grid)",
         "PairInfo(student_dim, teacher_dim, student_grid, student_grid)", PAIR),
        ("PairInfo(student_dim, teacher_dim, student_grid", "PairInfo(teacher_dim, student_dim, student_grid", PAIR),
        ("if not 0 <= block < depth", "if not 0 <= block <= depth",
         "models/test_pair.py::test_a_pair_with_other_classes_or_too_few_blocks_is_refused"),
        ("if teacher.num_classes and student", "if student",
         "models/test_pair.py::test_a_teacher_without_classes_fits_any"),
    ],
    "models/selection.py": [
        ("mean(dim=1)\n\n\ndef check", "amax(dim=1)\n\n\ndef check", ATTENTION),
        ("len(model.blocks) - 2", "len(model.blocks) - 1", ATTENTION),
        ("attention.scale * query", "query", ATTENTION),
        ("[:, model.num_prefix_tokens :]", "[:, :-model.num_prefix_tokens]", ATTENTION),
        ("[prefix, patches.gather(1, chosen)]", "[prefix, patches[:, :chosen.shape[1]]]", KEPT),
        ("keep_tokens >= teacher", "keep_tokens > teacher", UNFIT),
        ("if grids[0] != grids[1]:", "if False:", UNFIT),
    ],
    "models/linear_head.py": [
        ("final_BPD.mean(dim=1)], dim=1", "final_BPD[:, 0]], dim=1", PROBED),
        ("[pooled_BD, final_BPD.mean(dim=1)]", "[final_BPD.mean(dim=1), pooled_BD]", PROBED),
    ],
    "models/cost.py": [
        ('return 3 * costs["student"]', 'return 2 * costs["student"]',
         "models/test_cost.py::test_a_training_step_is_three_forwards_of_the_student_and_one_of_the_teacher"),
        ("keep_patches(model, keep_tokens)\n", "pass\n",
         "models/test_variants.py::test_half_of_the_patches_halve_the_teachers_cost"),
        ("return two[0] - one[0], two[1] - one[1]", "return one", TERM_COST),
        ("for tensor in _tensors(teacher):\n        keep(tensor)", "", TERM_COST),
        ("if place not in known)", ")", TERM_COST),
    ],
    "models/fit.py": [
        ("if not is_allowed:", "if False:", f"{BUILD}test_a_file_of_another_resolution_is_refused_unless_allowed"),
        ("if has_other_classes and names", "if False",
         f"{BUILD}test_a_students_classifier_is_kept_only_for_the_classes_that_it_was_trained_for"),
        ("adapt_layer_scale=True", "adapt_layer_scale=False",
         f"{WEIGHTS}test_each_family_loads_from_each_format_with_identical_logits"),
        ("model.reset_classifier(0)", "pass", f"{BUILD}test_a_classifier_for_other_classes_is_left_out_and_reported"),
    ],
    "models/build.py": [
        ("model.requires_grad_(False).eval()", "model.eval()",
         f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains"),
        ("model.requires_grad_(False).eval()", "model.requires_grad_(False)",
         f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains"),
        ('"drop_path_rate": config.drop_path_rate, "needs', '"drop_path_rate": 0, "needs',
         f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains"),
        ("model.set_grad_checkpointing(config.checkpoint_activations)", "model.set_grad_checkpointing(False)",
         f"{BUILD}test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains"),
        ("image_size=config.image_size or data.image_size)", "image_size=data.image_size)",
         "models/test_foundation.py::test_a_teacher_of_its_own_size_has_its_own_grid_and_cost"),
        ("_take_normalization(model, path)\n\n\ndef _take", "\n\n\ndef _take",
         f"{BUILD}test_the_normalisation_is_that_of_the_description_beside_the_weights"),
        ("model.pretrained_cfg = model.pretrained_cfg | normalization", "pass",
         f"{BUILD}test_the_normalisation_is_that_of_the_description_beside_the_weights"),
        ('described = described | description_beside(Path(config.init)).get("normalization", {})', "pass",
         f"{BUILD}test_the_statistics_of_a_student_are_those_of_the_model_that_is_built"),
        ("if data.image_size % height or", "if data.image_size % height and",
         f"{BUILD}test_other_models_and_arguments_are_refused_by_name"),
    ],
    "models/weights.py": [
        ('"cpu", weights_only=True', '"cpu", weights_only=False',
         f"{WEIGHTS}test_a_pickle_that_runs_code_is_refused_and_not_run"),
        ('("model", "state_dict", "model_state_dict", "model_ema")',
         '("model_ema", "model", "state_dict", "model_state_dict")',
         f"{WEIGHTS}test_pickles_are_read_plain_and_from_each_container_before_an_average"),
        ("2 * sum(key", "1 * sum(key", f"{WEIGHTS}test_wrapper_prefixes_are_removed_however_nested"),
        ("if len(renamed) < len(new_names):", "if False:",
         f"{WEIGHTS}test_a_prefix_that_few_keys_carry_stays_and_two_tensors_for_one_name_are_an_error"),
        ("if found != wanted]", "if False]", f"{WEIGHTS}test_differences_name_a_few_keys_of_each_kind"),
    ],
}  # fmt: skip
