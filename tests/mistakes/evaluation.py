"""Mistakes in vitkd_ds/train: evaluation, calibration and statistics of results."""

EVALUATE = "train/test_evaluate.py::test_"
HEALTH = "train/test_health.py::test_"
COUNTS = f"{EVALUATE}counts_match_slow_counts"
GIVEN_UP = f"{EVALUATE}evaluation_can_be_interrupted_needs_an_image_and_works_without_a_teacher"
AGREEMENT = "train/test_agreement.py::test_cka_matches_a_slow_one_over_counted_images_and_compares_patches_individually"
COSINE = "train/test_agreement.py::test_cosines_are_means_over_counted_images_of_adapted_student_features"
KNN = "test_label_free.py::test_k_nn_in_the_run_matches_eval_over_all_ranks_images"
CLIPPING = f"{HEALTH}clipping_is_reported_once_after_acting_on_every_step_for_long"
MOST = f"{HEALTH}a_term_that_dominates_the_total_is_named_with_its_weight_option"
JUDGED = "train/test_teacher_check.py::test_the_teacher_is_judged_by_its_interval_or_against_chance"
PADDING = "train/test_predictions.py::test_padding_and_skipped_images_have_no_answer_and_a_missing_teacher_no_column"
SUMS = "train/test_calibrate.py::test_sums_give_mean_and_covariance_of_values_far_from_0"
CALIBRATED = "train/test_calibrate.py::test_statistics_come_from_the_first_images_of_all_ranks_and_are_computed_once[1]"

MISTAKES = {
    "train/evaluate.py": {
        "_count": {
            "torch.stack([column.double() for column in columns]) * is_real_B"
            " => torch.stack([column.double() for column in columns])": COUNTS,
            "[is_real_B, is_hit[:, 0], is_hit.any(1), ...] => [is_real_B, is_hit.any(1), is_hit[:, 0], ...]": COUNTS,
            "min(5, student_BK.shape[1]) => min(4, student_BK.shape[1])": COUNTS,
            "[teacher_best_B == labels_B, teacher_best_B == best[:, 0], kl_B]"
            " => [teacher_best_B == best[:, 0], teacher_best_B == labels_B, kl_B]": COUNTS,
            "...(student_BK.log_softmax(1), teacher_BK.log_softmax(1), **...)"
            " => ...(teacher_BK.log_softmax(1), student_BK.log_softmax(1), **...)": COUNTS,
        },
        "evaluate": {
            "normalization.apply(images_BCHW, torch.float32) => images_BCHW.float()": (
                f"{EVALUATE}images_are_normalised_and_the_student_is_in_eval_mode"
            ),
            "student.eval() =>": f"{EVALUATE}images_are_normalised_and_the_student_is_in_eval_mode",
        },
        "_looked_at": {
            "must_stop() => False": GIVEN_UP,
        },
        "evaluate_knn": {
            "[(votes_MK.argmax(1) == labels_M) & (labels_M >= 0), ... >= 0]"
            " => [votes_MK.argmax(1) == labels_M, ... >= -1]": KNN,
            "(ranks.gather(train_ND), ranks.gather(labels_N)) => (train_ND, labels_N)": KNN,
        },
    },
    "train/agreement.py": {
        "cka": {
            "cross.square => cross.abs": AGREEMENT,
        },
        "Agreement.add": {
            "value_B[real] => value_B": COSINE,
            "is_real_B.nonzero().flatten() => torch.arange(len(is_real_B))": AGREEMENT,
            "(student.final_BPD, teacher.final_BPD) => (student.final_BPD, student.final_BPD)": AGREEMENT,
        },
    },
    "train/calibrate.py": {
        "Sums.mean_and_covariance": {
            "products_DD / count - torch.outer(mean_D, mean_D) => products_DD / count": SUMS,
            "mean_D + self.shift_D => mean_D": SUMS,
        },
        "calibrate": {
            "place=key => place=0": CALIBRATED,
        },
    },
    "train/health.py": {
        "Health.observe_step": {
            "grad_norm > most => grad_norm < most": CLIPPING,
        },
        "parts_of_total": {
            "values.get(FACTOR + name, 1.0) => 1.0": (f"{HEALTH}a_balanced_term_is_judged_after_its_factor"),
            "weights[name] * values.get(FACTOR + name, 1.0) => values.get(FACTOR + name, 1.0)": MOST,
        },
        "Health._holds": {
            "self._patience => 0": CLIPPING,
            "step - since >= self._patience and finding not in self._said => step - since >= self._patience": CLIPPING,
            "self._since.pop(finding, None) => pass": (
                f"{HEALTH}an_only_term_may_be_the_whole_total_and_a_break_resets_the_count"
            ),
        },
    },
    "train/predictions.py": {
        "Predictions.result": {
            "joined[:, 0] != PADDING_LABEL => joined[:, 0] >= -9": PADDING,
        },
        "Predictions.add": {
            "(student_BK, *teachers_BK.values()) => (student_BK, *(student_BK for _ in teachers_BK))": (
                "train/test_predictions.py::test_each_model_has_its_own_answers"
            ),
        },
    },
    "train/probe.py": {
        "knn_votes": {
            "(cosines / temperature).exp() => cosines": "train/test_probe.py::test_neighbours_vote_like_a_slow_loop",
        },
        "fit_linear": {
            "momentum=MOMENTUM => momentum=0.0": "train/test_probe.py::test_a_fitted_classifier_matches_sgd_by_hand",
        },
        "linear_probe": {
            "labels_N[held] => labels_N[kept[:len(held)]]": (
                "train/test_probe.py::test_the_probe_matches_a_slow_one_and_its_rate_is_chosen_on_held_out_images"
            ),
        },
    },
    "train/statistics.py": {
        "": {
            "NORMAL_95 = 1.96 => NORMAL_95 = 1.64": (
                "train/test_statistics.py::test_wilsons_interval_has_its_textbook_values"
            ),
        },
        "t_interval": {
            "stdtrit(len(values) - 1, 0.975) => stdtrit(len(values), 0.975)": (
                "train/test_statistics.py::test_the_interval_of_a_mean_is_students_t"
            ),
            "statistics.stdev => statistics.pstdev": (
                "train/test_statistics.py::test_the_interval_of_a_mean_is_students_t"
            ),
        },
    },
    "train/teacher_check.py": {
        "judge": {
            "figure - FAR_PERCENT => figure": JUDGED,
            "'warning' if high < figure else 'ok' => 'ok'": JUDGED,
        },
        "is_guess": {
            "low < chance and high < chance + NEAR_CHANCE * (100 - chance)"
            " => low < chance or high < chance + NEAR_CHANCE * (100 - chance)": (
                "train/test_teacher_check.py::test_too_few_images_to_distinguish_from_chance_give_a_warning"
            ),
        },
    },
}
