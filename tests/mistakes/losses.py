"""Mistakes in vitkd_ds/losses."""

LOSSES = "losses/test_losses.py::"
METHODS = "losses/test_methods.py::"
ATTENTION = f"{METHODS}test_attention_matches_its_twins_value_and_gradient_for_any_prefix_attention"
PARTS = "losses/test_parts.py::"
TWINS = f"{LOSSES}test_losses_of_logits_match_their_twins"
METHOD_TWINS = f"{METHODS}test_losses_match_their_twins"
VITKD = f"{LOSSES}test_vitkd_matches_its_twin_even_on_grids_that_are_not_square"
FINER = f"{LOSSES}test_a_teacher_on_another_grid_is_resized_like_pillow"
NUMBERS = "models/test_distiller.py::test_each_number_of_a_term_reaches_its_loss"
LOGITS = "models/test_distiller.py::test_each_number_of_a_logit_term_reaches_its_loss"
GATHERED = "models/test_distiller.py::test_dist_over_all_ranks_gathers_both_models_logits_and_dist_per_micro_batch_none"
GRIDS = "models/test_distiller.py::test_the_blocks_and_grids_of_vitkd_reach_it"
FEATURE = f"{PARTS}test_feature_matches_its_twin_for_every_target"
QUEUE = f"{PARTS}test_a_queue_keeps_the_newest_features_of_all_ranks_and_starts_empty"
RELATIONS = "models/test_distiller.py::test_numbers_of_relation_and_feature_reach_their_losses"
HEADS = "models/test_variants.py::test_the_second_head_learns_the_teachers_answer"

MISTAKES = {
    "losses/vitkd.py": {
        "ViTKD.__init__": {
            "('alpha', 'beta', 'mask_ratio', 'scaled') => ('alpha', 'beta', 'mask_ratio')": NUMBERS,
            "('alpha', 'beta', 'mask_ratio', 'scaled') => ('alpha', 'beta', 'scaled')": NUMBERS,
            "('alpha', 'beta', 'mask_ratio', 'scaled') => ('alpha', 'mask_ratio', 'scaled')": NUMBERS,
            "super().__init__(**vars(pair), **numbers)"
            " => super().__init__(pair.student_dim, pair.teacher_dim, **numbers)": GRIDS,
            "vars(pair) => vars(pair) | {'student_grid': pair.teacher_grid}": GRIDS,
            "term.blocks => (0, 1)": GRIDS,
        },
        "ViTKDLoss.forward": {
            "self.alpha => self.beta": VITKD,
            "scale * self.alpha / len(error_BLPD) => scale * self.alpha": VITKD,
            "self.beta => self.alpha": VITKD,
            "teacher_shallow_BLPD.detach() => teacher_shallow_BLPD": (
                f"{LOSSES}test_the_teacher_gets_no_gradient_from_any_loss"
            ),
            "num_tokens * self.teacher_dim => num_tokens * self.student_dim": (
                f"{LOSSES}test_scaled_weights_are_the_papers_for_the_actual_number_of_summands"
            ),
            "num_tokens * self.teacher_dim => teacher_tokens * self.teacher_dim": (
                f"{LOSSES}test_scaled_weights_use_the_students_grid_to_which_the_teachers_is_resized"
            ),
            "at_least_fp32(student_shallow_BLPD) => student_shallow_BLPD": (
                (
                    f"{LOSSES}test_squares_and_sums_of_bf16_features_are_fp32",
                    "bf16 less fp32 is fp32, so the other side's conversion suffices",
                )
            ),
            "(..., i) => (..., 0)": VITKD,
        },
        "_resize": {
            "antialias=True => antialias=False": FINER,
            "...(image, **..., mode='bilinear', antialias=True, align_corners=False)"
            " => ...(image, **..., mode='nearest')": FINER,
            "at_least_fp32(tokens).reshape(-1, *old, D) => at_least_fp32(tokens).reshape(-1, old[1], old[0], D)": FINER,
        },
        "ViTKDLoss._generate": {
            "torch.rand(B, P, device=student_BPD.device) => torch.rand(1, P).expand(B, P)": (
                f"{LOSSES}test_the_default_noise_masks_each_image_differently"
            ),
            "rank_BP >= int(P * (1 - self.mask_ratio)) => rank_BP > int(P * (1 - self.mask_ratio))": (
                f"{LOSSES}test_exactly_the_official_number_of_tokens_is_masked"
            ),
            "1 - self.mask_ratio => self.mask_ratio": VITKD,
            "beta / self.mask_ratio => beta": VITKD,
            "(at_least_fp32(generated_BPD) - at_least_fp32(teacher_BPD)) * is_masked_BP1"
            " => at_least_fp32(generated_BPD) - at_least_fp32(teacher_BPD)": VITKD,
        },
        "ViTKDLoss.__init__": {
            "nn.ReLU(inplace=True) => nn.GELU()": VITKD,
        },
        "": {
            "196 * 384 => 197 * 384": f"{LOSSES}test_scaled_weights_are_the_papers_for_the_actual_number_of_summands",
        },
        "ViTKD.forward": {
            "{...: halves['mimic'], ...: halves['generate']} => {...: halves['generate'], ...: halves['mimic']}": (
                NUMBERS
            ),
        },
    },
    "losses/kd.py": {
        "KD.forward": {
            "{'temperature': self.term.temperature, **...} => {**...}": NUMBERS,
            "{**..., 'standardize': self.term.standardize} => {**...}": LOGITS,
        },
        "kd_loss": {
            "temperature ** 2 * ... => ...": TWINS,
            "teacher_BK / temperature => teacher_BK": TWINS,
            "reduction='batchmean' => reduction='mean'": TWINS,
            "teacher_logits_BK.detach() => teacher_logits_BK": (
                f"{LOSSES}test_the_teacher_gets_no_gradient_from_any_loss"
            ),
        },
    },
    "losses/nkd.py": {
        "NKD.forward": {
            "{'temperature': self.term.temperature, 'gamma': self.term.gamma} => {'gamma': self.term.gamma}": NUMBERS,
            "{'temperature': self.term.temperature, 'gamma': self.term.gamma}"
            " => {'temperature': self.term.temperature}": NUMBERS,
        },
        "nkd_loss": {
            "gamma * temperature ** 2 => gamma": TWINS,
            "other_logits(teacher_BK, target_B1) / temperature => other_logits(teacher_BK, target_B1)": TWINS,
        },
        "other_logits": {
            "others >= target_B1 => others > target_B1": TWINS,
        },
        "_target_indices": {
            "targets.argmax => targets.argmin": TWINS,
        },
    },
    "losses/cross_entropy.py": {
        "soft_cross_entropy": {
            "(at_least_fp32(targets_BK) * log_student_BK).sum(1) => at_least_fp32(targets_BK) * log_student_BK": TWINS,
            "at_least_fp32(student_logits_BK) => student_logits_BK": f"{LOSSES}test_softmaxes_of_bf16_logits_are_fp32",
        },
    },
    "losses/dist.py": {
        "DIST.forward": {
            "...(..., teacher_BK, beta=....beta, gamma=....gamma)"
            " => ...(..., teacher_BK, beta=....gamma, gamma=....beta)": LOGITS,
            "gamma=self.term.gamma =>": LOGITS,
            "self.term.scope == 'all_ranks' => not self.term": GATHERED,
        },
        "dist_loss": {
            "(1, 0) => (1, 1)": METHOD_TWINS,
            "gamma * within_classes => within_classes": METHOD_TWINS,
        },
    },
    "losses/dkd.py": {
        "DKD.forward": {
            "{'alpha': self.term.alpha, 'beta': self.term.beta, **...}"
            " => {'alpha': self.term.beta, 'beta': self.term.alpha, **...}": LOGITS,
            "{**..., 'temperature': self.term.temperature} => {**...}": LOGITS,
            "targets_BK.argmax => targets_BK.argmin": LOGITS,
        },
        "dkd_loss": {
            "temperature ** 2 * (alpha * on_label + beta * on_others) => alpha * on_label + beta * on_others": (
                METHOD_TWINS
            ),
        },
    },
    "losses/wttm.py": {
        "WTTM.forward": {
            "{'gamma': self.term.gamma, 'weighted': self.term.weighted} => {'gamma': self.term.gamma}": LOGITS,
            "self.term.gamma => 0.8": LOGITS,
        },
        "wttm_loss": {
            "log_sum_B1[:, 0].exp() * divergence_B => divergence_B": METHOD_TWINS,
        },
    },
    "losses/distillation_token.py": {
        "DistillationToken.forward": {
            "self.term.kind == 'hard' => self.term": HEADS,
            "temperature=self.term.temperature =>": HEADS,
        },
        "hard_distillation_loss": {
            "teacher_logits_BK.argmax => student_logits_BK.argmax": HEADS,
        },
    },
    "losses/vkd.py": {
        "VkD.forward": {
            "at_least_fp32(student.final_BPD).mean(dim=1) => at_least_fp32(student.final_BPD)[:, 0]": (
                f"{PARTS}test_vkd_pools_patches_projects_them_and_compares_with_the_pooled_teacher"
            ),
        },
        "vkd_loss": {
            "F.layer_norm(target_BD, target_BD.shape[1:]) => target_BD": (
                f"{PARTS}test_vkd_pools_patches_projects_them_and_compares_with_the_pooled_teacher"
            ),
        },
        "OrthogonalProjector.weight": {
            "products.diagonal() / 2 => products.diagonal()": (
                f"{PARTS}test_a_projector_is_orthogonal_for_any_parameter_and_learns"
            ),
        },
    },
    "losses/spectral.py": {
        "Spectral.forward": {
            "self.term.teacher_blocks => self.term.student_blocks": (
                "models/test_distiller.py::test_spectral_compares_the_named_blocks_in_pairs"
            ),
        },
        "spectral_loss": {
            "norm='ortho' => norm=None": f"{METHODS}test_spectral_matches_its_twin",
            "(1, 2) => (1, 3)": f"{METHODS}test_spectral_matches_its_twin",
        },
    },
    "losses/attention.py": {
        "Attention.forward": {
            "teacher.maps[other] => teacher.maps[own]": (
                f"{METHODS}test_attention_compares_pairs_of_blocks_and_needs_equal_grids"
            ),
        },
        "attention_loss": {
            "map_BPP / map_BPP.sum(dim=2, keepdim=True) => map_BPP": ATTENTION,
            "other_BPP.log() - own_BPP.log() => own_BPP.log() - other_BPP.log()": ATTENTION,
        },
    },
    "losses/relation.py": {
        "Relation.forward": {
            "...(..., teacher.final_BPD, temperature=temperature) => ...(..., teacher.final_BPD)": RELATIONS,
            "...(*pooled, ..., is_filled_Q, temperature=temperature) => ...(*pooled, ..., is_filled_Q)": QUEUE,
            "self.gather(teacher.pooled_BD.detach()) => teacher.pooled_BD": QUEUE,
        },
        "Relation._remember": {
            "teacher_BD[-size:] => teacher_BD[:size]": f"{PARTS}test_a_queue_given_too_many_images_keeps_the_newest",
            "self.num_seen += len(newest_BD) => pass": QUEUE,
            "F.normalize(at_least_fp32(teacher_BD[-size:]), dim=1) => at_least_fp32(teacher_BD[-size:])": QUEUE,
        },
        "Relation.__init__": {
            "term.queue => 4096": RELATIONS,
        },
    },
    "losses/feature.py": {
        "": {
            "SMOOTH = 0.1 => SMOOTH = 0.2": FEATURE,
        },
        "Feature.metrics": {
            "cosine_BP.mean(1) => cosine_BP[:, 0]": (
                "train/test_agreement.py::test_cosines_are_means_over_counted_images_of_adapted_student_features"
            ),
        },
        "_resized": {
            "mode='bicubic' => mode='bilinear'": f"{PARTS}test_the_smaller_grid_is_interpolated_to_the_larger_one",
        },
        "Feature.__init__": {
            "term.target => 'standardize'": FEATURE,
        },
        "Feature.num_calibrating": {
            "self.term.calibration_batches => 32": RELATIONS,
        },
        "Feature.features_to_calibrate": {
            "{...: teacher.pooled_BD, ...: teacher.final_BPD} => {...: teacher.final_BPD, ...: teacher.pooled_BD}": (
                f"{PARTS}test_each_target_is_calibrated_on_its_own_features"
            ),
        },
        "Target.fix": {
            "FLOOR * variance_D.mean() => 0": f"{PARTS}test_a_channel_that_never_varied_stays_small",
        },
        "Feature._compared": {
            "...(..., student_grid, teacher_grid) => ...(..., teacher_grid, student_grid)": (
                f"{PARTS}test_the_smaller_grid_is_interpolated_to_the_larger_one"
            ),
        },
    },
    "losses/balance.py": {
        "Balance.forward": {
            "self.gather(at_least_fp32(values_T.detach())[None]).mean"
            " => self.gather(at_least_fp32(values_T.detach())[None]).sum": (
                f"{PARTS}test_ranks_with_different_values_have_the_same_factors"
            ),
            "self.gather(at_least_fp32(values_T.detach())[None]) => at_least_fp32(values_T.detach())[None]": (
                f"{PARTS}test_ranks_with_different_values_have_the_same_factors"
            ),
            "len(p_T) * p_T => p_T": f"{PARTS}test_factors_of_two_terms_match_a_case_by_hand_and_the_twin",
        },
        "": {
            "0.01 => 0.02": (f"{PARTS}test_factors_of_two_terms_match_a_case_by_hand_and_the_twin"),
        },
    },
    "losses/precision.py": {
        "at_least_fp32": {
            "(torch.bfloat16, torch.float16) => (torch.float16,)": (
                f"{LOSSES}test_squares_and_sums_of_bf16_features_are_fp32"
            ),
        },
    },
}
