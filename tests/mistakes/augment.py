"""Mistakes in vitkd_ds/data: augmentation, mixing, normalisation and the selection of images."""

MIXING = "train/test_mixing.py::"
MIX_KEYS = f"{MIXING}test_a_step_is_mixed_by_its_own_key_with_the_settings_of_the_run"
PARTNERS = f"{MIXING}test_images_and_targets_are_mixed_with_the_same_partners"
TIMM = f"{MIXING}test_a_micro_batch_is_mixed_like_timms"
ELEMENT = f"{MIXING}test_element_mode_mixes_each_target_like_its_pixels"
OTHERS = "data/augment/test_augmenter.py::test_another_seed_epoch_repeat_or_image_gives_another_result"
EVERYTHING = "data/augment/test_augmenter.py::test_every_operation_occurs_and_equals_the_torchvision_backend"
POLICY = "data/augment/test_policy.py::"
ARGUMENTS = f"{POLICY}test_arguments_have_timms_distribution"
LEVELS = f"{POLICY}test_level_functions_equal_timms_at_every_magnitude_and_sign"
FRACTION = "data/test_subset.py::test_a_fraction_is_per_class_independent_of_the_seed_and_inside_a_larger_one"
SKIPPED = "data/test_bad_images.py::test_skip_substitutes_the_next_decodable_image_and_counts"

MISTAKES = {
    "train/mixing.py": {
        "mix_step": {
            "keyed_rng(run.seed, step, place, MIX_STREAM) => keyed_rng(run.seed, 0, place, MIX_STREAM)": MIX_KEYS,
            "keyed_rng(run.seed, step, place, MIX_STREAM) => keyed_rng(run.seed, step, 0, MIX_STREAM)": MIX_KEYS,
            "run.seed => 0": MIX_KEYS,
            "torch.manual_seed(int(rng.integers(2 ** 63))) => rng.integers(2 ** 63)": MIX_KEYS,
            "run.augment.mix_mode => 'batch'": MIX_KEYS,
            "run.losses.label_smoothing => 0": MIX_KEYS,
            "run.augment.mixup_alpha => run.augment.cutmix_alpha": MIX_KEYS,
            "run.augment.cutmix_alpha => run.augment.mixup_alpha": MIX_KEYS,
            "run.data.num_classes => 10": MIX_KEYS,
        },
        "smooth_targets": {
            "1 - label_smoothing + floor => 1 - label_smoothing": (
                f"{MIXING}test_without_mixing_images_keep_their_values_and_targets_are_smoothed_like_timms"
            ),
        },
        "_draw": {
            "lam[i] = 1 - (bottom - top) * (right - left) / (height * width)"
            " => _ = 1 - (bottom - top) * (right - left) / (height * width)": PARTNERS,
            "rng.permutation(num_images) => np.arange(num_images)[::-1]": (
                f"{MIXING}test_mixing_depends_only_on_the_generator_and_gives_the_recorded_numbers"
            ),
            "num_images if mix_mode == 'element' else 1 => num_images": TIMM,
        },
        "cutmix_box": {
            "np.sqrt(1 - lam) => 1 - lam": f"{MIXING}test_the_boxes_have_the_area_that_was_drawn",
        },
        "blend": {
            "images[mixing.partner_B] => images.flip(0)": ELEMENT,
        },
        "_pairs": {
            "partner_B.tolist() => range(len(partner_B))": PARTNERS,
        },
        "mix": {
            "own_BCHW[place] = pasted_BCHW[partner] => own_BCHW[partner] = pasted_BCHW[place]": PARTNERS,
        },
        "_mixup": {
            "copy=True =>": f"{MIXING}test_targets_sum_to_one_and_the_input_and_its_memory_format_are_kept",
        },
    },
    "data/augment/augmenter.py": {
        "Augmenter.plan": {
            "self._seed => 0": OTHERS,
            "probability=probability => probability=1.0": EVERYTHING,
        },
        "Augmenter._layers": {
            "self._config.interpolation => 'random'": (
                "data/augment/test_augmenter.py::test_the_interpolation_is_chosen_from_the_settings"
            ),
            "layers.append(drawn.draw_three_augment(keys_B)) => layers.insert(0, drawn.draw_three_augment(keys_B))": (
                "data/augment/test_augmenter.py::test_layers_follow_the_order_of_the_settings"
            ),
            "layers += drawn.draw_color_jitter(...) => layers[:0] = drawn.draw_color_jitter(...)": (
                "data/augment/test_augmenter.py::test_layers_follow_the_order_of_the_settings"
            ),
        },
        "Augmenter.__init__": {
            "statistics[0] => statistics[1]": (
                "data/augment/test_augmenter.py::test_uncovered_pixels_have_the_models_mean_colour_as_timm_rounds_it"
            ),
        },
        "Augmenter.has_work": {
            "... or config.color_jitter or config.random_erasing => ... or config.color_jitter": (
                "data/augment/test_augmenter.py::test_an_augmenter_knows_whether_it_has_work"
            ),
        },
    },
    "data/augment/policy.py": {
        "draw_rand_augment": {
            "policy.magnitude_std => 0": ARGUMENTS,
            "policy.magnitude_max => 30": ARGUMENTS,
            "policy.probability => 1": (
                f"{POLICY}test_operations_are_drawn_uniformly_with_replacement_and_applied_with_probability_p"
            ),
            "policy.num_layers => 2": (
                f"{POLICY}test_operations_are_drawn_uniformly_with_replacement_and_applied_with_probability_p"
            ),
        },
        "level_arguments": {
            "256 - threshold_N => threshold_N": LEVELS,
            "sign_N * (level_N * 0.9) => level_N * 0.9": LEVELS,
        },
        "": {
            "RAND_AUGMENT_DRAWS + MAX_LAYERS * DRAWS_PER_LAYER => RAND_AUGMENT_DRAWS": (
                f"{POLICY}test_no_two_purposes_share_a_random_draw"
            ),
        },
        "draw_three_augment": {
            "0.1 + 1.9 * uniform(keys_B, THREE_AUGMENT_DRAWS + 1) => 2 * uniform(keys_B, THREE_AUGMENT_DRAWS + 1)": (
                f"{POLICY}test_three_augment_draws_its_three_operations_at_even_odds"
            ),
        },
        "draw_color_jitter": {
            "1 - strength + 2 * strength * uniform(keys_B, draw) => 1 + strength * uniform(keys_B, draw)": (
                f"{POLICY}test_color_jitter_applies_all_three_operations_in_one_of_six_orders"
            ),
        },
        "draw_rectangles": {
            "LOG_ASPECT * (2 * uniform(keys_B, first + 1) - 1) => 0 * (2 * uniform(keys_B, first + 1) - 1)": (
                f"{POLICY}test_rectangles_have_timms_distribution_and_stay_in_the_image"
            ),
        },
    },
    "data/bad_images.py": {
        "handle_bad_images": {
            "labels_B[i] = PADDING_LABEL => pass": (
                "data/test_bad_images.py::test_skip_drops_the_image_in_validation_and_gives_up_if_nothing_decodes"
            ),
        },
        "_next_image": {
            "other['index'] => sample['index']": SKIPPED,
            "place + step => place + step + 1": "data/test_bad_images.py::test_the_substitute_is_the_very_next_image",
        },
    },
    "data/subset.py": {
        "use_part": {
            "split == 'train' => False": (
                "data/test_subset.py::test_classes_are_numbered_by_their_list_in_both_splits"
            ),
        },
        "_part_of_each_class": {
            "math.ceil => math.floor": FRACTION,
        },
        "choose": {
            "split == 'train' => True": FRACTION,
            "np.intersect1d(chosen, _read_indices(data.indices, len(labels)))"
            " => _read_indices(data.indices, len(labels))": (
                "data/test_subset.py::test_the_subset_is_the_intersection_of_all_three_settings"
            ),
        },
    },
    "data/normalize.py": {
        "build_normalizer": {
            "255 * std_3 => 256 * std_3": (
                "data/test_normalize.py::test_images_match_trainings_own_normalisation_including_padding_rows"
            ),
        },
    },
}
