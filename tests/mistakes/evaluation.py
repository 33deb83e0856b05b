"""Mistakes in vitkd_ds/train: evaluation, calibration and statistics of results."""

EVALUATE = "train/test_evaluate.py::test_"
HEALTH = "train/test_health.py::test_"
COUNTS = f"{EVALUATE}counts_are_the_slow_ones"
GIVEN_UP = f"{EVALUATE}it_can_be_given_up_needs_an_image_and_agrees_with_no_teacher_where_there_is_none"
AGREEMENT = (
    "train/test_agreement.py::test_it_is_the_slow_one_of_all_images_that_count_and_patches_are_compared_one_by_one"
)
COSINE = (
    "train/test_agreement.py::"
    "test_cosines_are_means_over_the_images_that_count_of_what_the_adapters_make_of_the_student"
)
KNN = "test_label_free.py::test_k_nn_in_the_run_is_that_of_eval_for_the_images_of_all_ranks"
CLIPPING = f"{HEALTH}clipping_is_told_once_when_it_has_acted_on_every_step_for_long"
MOST = f"{HEALTH}a_term_that_is_most_of_the_total_by_its_weight_is_named_with_its_option"
JUDGED = "train/test_teacher_check.py::test_the_teacher_is_judged_by_the_interval_or_by_chance"
PADDING = (
    "train/test_predictions.py::test_padding_and_images_that_were_skipped_have_no_answer_and_no_teacher_has_no_column"
)
SUMS = "train/test_calibrate.py::test_sums_give_mean_and_covariance_of_values_far_from_0"
CALIBRATED = "train/test_calibrate.py::test_statistics_are_those_of_the_first_images_of_all_ranks_and_are_taken_once[1]"

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
            "values.get(FACTOR + name, 1.0) => 1.0": (
                f"{HEALTH}a_balanced_term_is_judged_by_what_its_factor_leaves_of_it"
            ),
            "weights[name] * values.get(FACTOR + name, 1.0) => values.get(FACTOR + name, 1.0)": MOST,
        },
        "Health._holds": {
            "self._patience => 0": CLIPPING,
            "step - since >= self._patience and finding not in self._said => step - since >= self._patience": CLIPPING,
            "self._since.pop(finding, None) => pass": f"{HEALTH}the_only_term_may_be_all_of_it_and_a_break_starts_anew",
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
            "(cosines / temperature).exp() => cosines": "train/test_probe.py::test_neighbours_vote_as_in_the_loop",
        },
        "fit_linear": {
            "momentum=MOMENTUM => momentum=0.0": "train/test_probe.py::test_a_classifier_is_fitted_as_sgd_by_hand_does",
        },
        "linear_probe": {
            "labels_N[held] => labels_N[kept[:len(held)]]": (
                "train/test_probe.py::"
                "test_the_probe_is_the_slow_one_and_its_rate_is_chosen_on_images_it_is_not_fitted_to"
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
                "train/test_statistics.py::test_the_interval_of_a_mean_is_students"
            ),
            "statistics.stdev => statistics.pstdev": (
                "train/test_statistics.py::test_the_interval_of_a_mean_is_students"
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
                "train/test_teacher_check.py::test_too_few_images_to_tell_from_chance_are_a_warning"
            ),
        },
    },
}
