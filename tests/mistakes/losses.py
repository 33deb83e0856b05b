"""Mistakes in vitkd_ds/losses."""

LOSSES, METHODS, PARTS = "losses/test_losses.py::", "losses/test_methods.py::", "losses/test_parts.py::"
TWINS, METHOD_TWINS = f"{LOSSES}test_losses_of_logits_are_their_twins", f"{METHODS}test_losses_are_their_twins"
VITKD = f"{LOSSES}test_vitkd_is_its_twin_also_on_grids_that_are_not_square"
FINER = f"{LOSSES}test_a_teacher_on_another_grid_is_resized_as_by_pillow"
NUMBERS = "models/test_distiller.py::test_each_number_of_a_term_is_that_of_its_loss"
LOGITS = "models/test_distiller.py::test_each_number_of_a_term_of_logits_is_that_of_its_loss"
GATHERED = (
    "models/test_distiller.py::test_dist_of_all_ranks_gathers_both_models_logits_and_that_of_the_micro_batch_none"
)
GRIDS = "models/test_distiller.py::test_the_blocks_and_grids_of_vitkd_reach_it"
FEATURE = f"{PARTS}test_feature_is_its_twin_for_every_target"
QUEUE = f"{PARTS}test_a_queue_keeps_the_newest_features_of_all_ranks_and_starts_empty"
RELATIONS = "models/test_distiller.py::test_numbers_of_relation_and_feature_reach_them"
HEADS = "models/test_variants.py::test_the_second_head_learns_the_teachers_answer"

MISTAKES = {
    "losses/vitkd.py": [
        ('in ("alpha", "beta", "mask_ratio", "scaled")', 'in ("alpha", "beta", "mask_ratio")', NUMBERS),
        ('in ("alpha", "beta", "mask_ratio", "scaled")', 'in ("alpha", "beta", "scaled")', NUMBERS),
        ('in ("alpha", "beta", "mask_ratio", "scaled")', 'in ("alpha", "mask_ratio", "scaled")', NUMBERS),
        ("**vars(pair), **numbers", "pair.student_dim, pair.teacher_dim, **numbers", GRIDS),
        ("**vars(pair), **numbers", "**vars(pair) | {'student_grid': pair.teacher_grid}, **numbers", GRIDS),
        ("self.tapped = term.blocks", "self.tapped = (0, 1)", GRIDS),
        ("scale * self.alpha / len(error_BLPD)", "scale * self.beta / len(error_BLPD)", VITKD),
        ("self.alpha / len(error_BLPD) * error", "self.alpha * error", VITKD),
        ("beta=scale * self.beta", "beta=scale * self.alpha", VITKD),
        ("antialias=True", "antialias=False", FINER),
        ('mode="bilinear", antialias=True, align_corners=False', 'mode="nearest"', FINER),
        (".reshape(-1, *old, D)", ".reshape(-1, old[1], old[0], D)", FINER),
        ("torch.rand(B, P, device=student_BPD.device)", "torch.rand(1, P).expand(B, P)",
         f"{LOSSES}test_the_default_noise_masks_each_image_anew"),
        ("rank_BP >= int(", "rank_BP > int(", f"{LOSSES}test_exactly_the_official_number_of_tokens_is_masked"),
        ("int(P * (1 - self.mask_ratio))", "int(P * self.mask_ratio)", VITKD),
        ("beta / self.mask_ratio / B", "beta / B", VITKD),
        ("at_least_fp32(teacher_BPD)) * is_masked_BP1", "at_least_fp32(teacher_BPD))", VITKD),
        ("nn.ReLU(inplace=True)", "nn.GELU()", VITKD),
        ("_resize(teacher_shallow_BLPD.detach()", "_resize(teacher_shallow_BLPD",
         f"{LOSSES}test_the_teacher_gets_no_gradient_from_any_loss"),
        ("= 196 * 384", "= 197 * 384", f"{LOSSES}test_scaled_weights_are_the_papers_for_as_many_summands_as_there_are"),
        ("student_deep_BPD.shape[1] * self.teacher_dim)", "student_deep_BPD.shape[1] * self.student_dim)",
         f"{LOSSES}test_scaled_weights_are_the_papers_for_as_many_summands_as_there_are"),
        ("student_deep_BPD.shape[1] * self", "teacher_deep_BPD.shape[1] * self",
         f"{LOSSES}test_scaled_weights_go_by_the_students_grid_to_which_the_teachers_is_resized",
         "the teacher's tokens are on the student's grid by then"),
        ('halves["mimic"], "vitkd_generate": halves["generate"]',
         'halves["generate"], "vitkd_generate": halves["mimic"]',
         NUMBERS),
        ("at_least_fp32(student_shallow_BLPD) - at", "student_shallow_BLPD - at",
         f"{LOSSES}test_squares_and_sums_of_bf16_features_are_fp32",
         "bf16 less fp32 is fp32, so the other side's conversion suffices"),
        ("align(student_shallow_BLPD[:, i])", "align(student_shallow_BLPD[:, 0])", VITKD),
    ],
    "losses/kd.py": [
        ('{"temperature": self.term.temperature, "standardize"', '{"standardize"', NUMBERS),
        (', "standardize": self.term.standardize}', "}", LOGITS),
        ("return temperature**2 * F.kl_div", "return F.kl_div", TWINS),
        ("F.log_softmax(teacher_BK / temperature", "F.log_softmax(teacher_BK", TWINS),
        ('reduction="batchmean"', 'reduction="mean"', TWINS),
        ("teacher_logits_BK.detach()", "teacher_logits_BK", f"{LOSSES}test_the_teacher_gets_no_gradient_from_any_loss"),
    ],
    "losses/nkd.py": [
        ('{"temperature": self.term.temperature, ', "{", NUMBERS),
        (', "gamma": self.term.gamma}', "}", NUMBERS),
        ("gamma * temperature**2 * other_term", "gamma * other_term", TWINS),
        ("F.softmax(other_logits(teacher_BK, target_B1) / temperature", "F.softmax(other_logits(teacher_BK, target_B1)",
         TWINS),
        ("others >= target_B1", "others > target_B1", TWINS),
        ("targets.argmax(dim=1)", "targets.argmin(dim=1)", TWINS),
    ],
    "losses/cross_entropy.py": [
        ("log_student_BK).sum(1).mean()", "log_student_BK).mean()", TWINS),
        ("at_least_fp32(student_logits_BK), dim=1", "student_logits_BK, dim=1",
         f"{LOSSES}test_softmaxes_of_bf16_logits_are_fp32"),
    ],
    "losses/dist.py": [
        ("beta=self.term.beta, gamma=self.term.gamma", "beta=self.term.gamma, gamma=self.term.beta", LOGITS),
        ("beta=self.term.beta, gamma=self.term.gamma", "beta=self.term.beta", LOGITS),
        ('self.term.scope == "all_ranks"', "not self.term",
         GATHERED),
        ("for dim in (1, 0)", "for dim in (1, 1)", METHOD_TWINS),
        ("gamma * within_classes", "within_classes", METHOD_TWINS),
    ],
    "losses/dkd.py": [
        ('"alpha": self.term.alpha, "beta": self.term.beta', '"alpha": self.term.beta, "beta": self.term.alpha',
         LOGITS),
        (', "temperature": self.term.temperature}', "}", LOGITS),
        ("return temperature**2 * (alpha", "return (alpha", METHOD_TWINS),
        ("targets_BK.argmax(1)", "targets_BK.argmin(1)", LOGITS),
    ],
    "losses/wttm.py": [
        (', "weighted": self.term.weighted}', "}", LOGITS),
        ('{"gamma": self.term.gamma', '{"gamma": 0.8', LOGITS),
        ("log_sum_B1[:, 0].exp() * divergence_B", "divergence_B", METHOD_TWINS),
    ],
    "losses/distillation_token.py": [
        ('self.term.kind == "hard"', "self.term", HEADS),
        (", temperature=self.term.temperature)", ")", HEADS),
        ("teacher_logits_BK.argmax(1)", "student_logits_BK.argmax(1)", HEADS),
    ],
    "losses/vkd.py": [
        ("at_least_fp32(student.final_BPD).mean(dim=1)", "at_least_fp32(student.final_BPD)[:, 0]",
         f"{PARTS}test_vkd_pools_patches_projects_them_and_compares_with_the_pooled_teacher"),
        ("F.layer_norm(target_BD, target_BD.shape[1:])", "target_BD",
         f"{PARTS}test_vkd_pools_patches_projects_them_and_compares_with_the_pooled_teacher"),
        ("products.diagonal() / 2", "products.diagonal()",
         f"{PARTS}test_a_projector_is_orthogonal_whatever_its_parameter_is_and_learns"),
    ],
    "losses/spectral.py": [
        ("zip(self.term.student_blocks, self.term.teacher_blocks,",
         "zip(self.term.student_blocks, self.term.student_blocks,",
         "models/test_distiller.py::test_spectral_compares_the_blocks_that_are_named_one_by_one"),
        ('norm="ortho"', "norm=None", f"{METHODS}test_spectral_is_its_twin"),
        ("dim=(1, 2)", "dim=(1, 3)", f"{METHODS}test_spectral_is_its_twin"),
    ],
    "losses/relation.py": [
        ("teacher.final_BPD, temperature=temperature)", "teacher.final_BPD)", RELATIONS),
        ("is_filled_Q, temperature=temperature)", "is_filled_Q)", QUEUE),
        ("self._remember(self.gather(teacher.pooled_BD.detach()))", "self._remember(teacher.pooled_BD)", QUEUE),
        ("teacher_BD[-size:]", "teacher_BD[:size]", f"{PARTS}test_more_images_than_the_queue_holds_leave_the_newest"),
        ("self.num_seen += len(newest_BD)", "pass", QUEUE),
        ("F.normalize(at_least_fp32(teacher_BD[-size:]), dim=1)", "at_least_fp32(teacher_BD[-size:])", QUEUE),
        ("torch.zeros(term.queue,", "torch.zeros(4096,", RELATIONS),
    ],
    "losses/feature.py": [
        ("SMOOTH = 0.1", "SMOOTH = 0.2", FEATURE),
        ("cosine_BP.mean(1)", "cosine_BP[:, 0]",
         "train/test_agreement.py::"
         "test_cosines_are_means_over_the_images_that_count_of_what_the_adapters_make_of_the_student"),
        ('mode="bicubic"', 'mode="bilinear"', f"{PARTS}test_the_smaller_grid_is_interpolated_to_the_larger_one"),
        ("Target(term.target, pair", "Target('standardize', pair", FEATURE),
        ("self.term.calibration_batches if", "32 if", RELATIONS),
        ('teacher.pooled_BD, "targets.patches": teacher.final_BPD',
         'teacher.final_BPD, "targets.patches": teacher.pooled_BD',
         f"{PARTS}test_each_target_is_calibrated_with_its_own_features"),
        ("FLOOR * variance_D.mean()", "0", f"{PARTS}test_a_channel_that_never_varied_stays_small"),
        ("self.pair.student_grid, self.pair.teacher_grid", "self.pair.teacher_grid, self.pair.student_grid",
         f"{PARTS}test_the_smaller_grid_is_interpolated_to_the_larger_one"),
    ],
    "losses/balance.py": [
        ("[None]).mean(0)", "[None]).sum(0)", f"{PARTS}test_ranks_of_different_values_share_their_factors"),
        ("self.gather(at_least_fp32(values_T.detach())[None])", "at_least_fp32(values_T.detach())[None]",
         f"{PARTS}test_ranks_of_different_values_share_their_factors"),
        ("len(p_T) * p_T", "p_T", f"{PARTS}test_factors_of_two_terms_are_those_of_the_hand_case_and_of_the_twin"),
        ("0.025, 0.01", "0.025, 0.02", f"{PARTS}test_factors_of_two_terms_are_those_of_the_hand_case_and_of_the_twin"),
    ],
    "losses/precision.py": [
        ("(torch.bfloat16, torch.float16)", "(torch.float16,)",
         f"{LOSSES}test_squares_and_sums_of_bf16_features_are_fp32"),
    ],
}  # fmt: skip
