"""Mistakes in vitkd_ds/data."""

CROPS, ORDER, MIXING = "data/test_crops.py::", "data/test_order.py::", "data/test_mixing.py::"
KEYS = f"{CROPS}test_a_crop_depends_on_image_repeat_epoch_and_seed_and_not_on_its_place_in_the_order"
BOXES = f"{CROPS}test_boxes_are_distributed_as_torchvisions"
FLIPS = f"{CROPS}test_flips_and_filters_come_at_their_probability_and_can_be_fixed"
CENTRE = f"{CROPS}test_the_centre_crop_is_torchvisions_resize_and_centre_crop"
PIXELS = "data/test_loader.py::test_pixels_are_those_of_the_crop_resized_and_flipped_by_pillow"
EPOCHS = "data/test_loader.py::test_epochs_and_neighbouring_seeds_differ_in_pixels_and_two_epochs_may_be_open_at_once"
SAME_BITS = (
    "data/test_loader.py::"
    "test_more_threads_and_ranks_and_a_device_by_name_give_the_bits_of_one_and_so_does_a_resumed_epoch"
)
COPIES = (
    "data/test_loader.py::test_micro_batches_are_uint8_copies_in_memory_that_is_used_again_when_nothing_of_them_is_held"
)
ONCE = "data/test_loader.py::test_validation_sees_each_image_exactly_once_at_any_number_of_ranks"
VAL_CUTS = "data/test_loader.py::test_validation_cuts_by_its_settings_as_torchvision_does"
AUGMENTED = "data/test_loader.py::test_augmentation_follows_the_image_and_not_its_micro_batch"
SETTINGS = "data/test_images.py::test_the_settings_of_the_crops_reach_them"
MIX_KEYS = f"{MIXING}test_a_step_is_mixed_by_its_own_key_with_the_settings_of_the_run"
PARTNERS = f"{MIXING}test_a_micro_batch_is_mixed_with_the_partners_of_its_targets"
TIMM = f"{MIXING}test_a_micro_batch_is_mixed_as_by_timm"
ELEMENT = f"{MIXING}test_element_mode_mixes_each_target_as_its_pixels"
SHUFFLED = f"{ORDER}test_an_epoch_shows_each_image_at_most_once_in_an_order_of_its_own_and_only_whole_global_batches"
REPEATED = f"{ORDER}test_repeated_augmentation_shows_a_part_of_the_images_several_times_and_stays_as_long"
SAME_SET = f"{ORDER}test_a_step_has_the_same_set_of_images_at_any_number_of_ranks"
OTHERS = "data/augment/test_augmenter.py::test_another_seed_epoch_repeat_or_image_gives_another_result"
EVERYTHING = (
    "data/augment/test_augmenter.py::test_everything_equals_what_the_torchvision_backend_does_and_meets_every_operation"
)
POLICY = "data/augment/test_policy.py::"
ARGUMENTS = f"{POLICY}test_arguments_are_distributed_as_timms"
LEVELS = f"{POLICY}test_level_functions_equal_timms_at_every_magnitude_and_sign"
STATE = "data/test_loader_state.py::"
FRACTION = "data/test_subset.py::test_a_fraction_is_of_each_class_the_same_at_each_seed_and_inside_a_larger_one"
SKIPPED = "data/test_bad_images.py::test_skip_puts_the_next_image_that_decodes_in_its_place_and_counts"
RENUMBERED = "data/test_images.py::test_each_image_of_a_part_or_another_order_has_the_label_that_it_has_in_the_whole"

MISTAKES = {
    "data/draws.py": [
        ("keyed_rng(seed, epoch, IMAGE_STREAM)", "keyed_rng(seed, 0, IMAGE_STREAM)", KEYS),
        ("keyed_rng(seed, epoch, IMAGE_STREAM)", "keyed_rng(0, epoch, IMAGE_STREAM)", KEYS),
        ("keyed_rng(seed, epoch, IMAGE_STREAM)", "keyed_rng(seed + epoch, IMAGE_STREAM)", KEYS),
        (" | (repeats_N.astype(np.uint64) << np.uint64(48))", "", KEYS),
        ('epoch = int(samples["epoch"][0]) if len(samples) else 0', "epoch = 0", KEYS),
        ("[len(key), *key]", "[*key]",
         "data/test_draws.py::test_keys_are_all_different_and_the_whole_key_decides_what_a_generator_draws"),
        ("np.cos(2 * math.pi", "np.cos(math.pi", "data/test_draws.py::test_draws_are_uniform_and_normal",
         "cos(pi u) of a uniform u is distributed as cos(2 pi u)"),
        ("uniform(keys_N, draw + 1))", "uniform(keys_N, draw))",
         "data/test_draws.py::test_draws_are_uniform_and_normal"),
    ],
    "data/crops.py": [
        ("uniform(keys_N, FLIP_DRAW) < self.flip_probability", "uniform(keys_N, FLIP_DRAW) < 0.5", FLIPS),
        ("CROP_DRAWS + 1, CROP_DRAWS + 2, 4", "CROP_DRAWS, CROP_DRAWS + 2, 4", FLIPS),
        ("CROP_DRAWS + 1, CROP_DRAWS + 2, 4", "CROP_DRAWS + 1, CROP_DRAWS, 4",
         f"{CROPS}test_flips_and_boxes_share_no_draw"),
        ("ratios = np.exp(low + (high - low) * ratio_u)",
         "ratios = np.exp(low) + (np.exp(high) - np.exp(low)) * ratio_u",
         f"{CROPS}test_ratios_are_log_uniform"),
        ("self.scale[1] - self.scale[0]) * area_u", "self.scale[1] - self.scale[0]) * area_u**2", BOXES),
        ("(areas / ratios, areas * ratios)", "(areas * ratios, areas / ratios)", f"{CROPS}test_ratios_are_log_uniform"),
        ("(top_u * (heights - box_heights + 1))", "(top_u * (heights - box_heights + 2))",
         f"{CROPS}test_boxes_lie_inside_the_image_and_have_an_area"),
        ("(top_u * (heights - box_heights + 1))", "(top_u * (heights - box_heights))",
         f"{CROPS}test_each_place_of_a_box_is_as_likely"),
        ("(left_u * (widths - box_widths + 1))", "(left_u * (widths - box_widths))",
         f"{CROPS}test_each_place_of_a_box_is_as_likely"),
        ("FIRST_BOX_DRAW + attempt * DRAWS_PER_TRY", "FIRST_BOX_DRAW",
         f"{CROPS}test_a_box_that_does_not_fit_is_drawn_anew_ten_times"),
        ("NUM_TRIES = 10", "NUM_TRIES = 1", f"{CROPS}test_a_box_that_does_not_fit_is_drawn_anew_ten_times"),
        ("math.floor(self.size / self.crop_fraction)", "round(self.size / self.crop_fraction)", CENTRE),
        ("shorter * lengths_N // shorter_N", "np.rint(shorter * lengths_N / shorter_N)", CENTRE),
        ("np.rint((rows", "np.floor((rows", CENTRE),
        ('return "bicubic" if interpolation == "random"', 'return "bilinear" if interpolation == "random"',
         f"{CROPS}test_evaluation_resizes_by_the_filter_of_the_settings"),
        ("FILTERS[val_interpolation(self.interpolation)]", 'FILTERS["bicubic"]',
         f"{CROPS}test_evaluation_resizes_by_the_filter_of_the_settings"),
        ("(heights_N - box_heights_N) // 2, (widths_N - box_widths_N) // 2", "0 * heights_N, 0 * widths_N", BOXES),
    ],
    "data/order.py": [
        ("order = keyed_rng(seed, epoch, ORDER_STREAM)", "order = keyed_rng(seed, 0, ORDER_STREAM)", SHUFFLED),
        ("order = keyed_rng(seed, epoch, ORDER_STREAM)", "order = keyed_rng(0, epoch, ORDER_STREAM)", SHUFFLED),
        ("rng, num_draws = keyed_rng(seed, epoch, ORDER_STREAM)", "rng, num_draws = keyed_rng(seed, ORDER_STREAM)",
         "data/test_subset.py::test_a_balanced_epoch_has_as_many_of_each_class_and_no_image_and_repeat_twice"),
        ("rng = keyed_rng(seed, epoch, ORDER_STREAM)\n", "rng = keyed_rng(seed, ORDER_STREAM)\n", SHUFFLED),
        ('samples["epoch"] = epoch', 'samples["epoch"] = 0',
         "data/test_loader.py::test_an_image_is_cut_anew_in_each_epoch"),
        ("np.arange(samples.shape[-1]) % repeats", "0", REPEATED),
        ("samples[:, apart].reshape(-1)", "samples.reshape(-1)", REPEATED),
        ("samples.reshape(-1, world_size, micro_batch_size)[:, rank]",
         "samples.reshape(world_size, -1, micro_batch_size)[rank]",
         SAME_SET),
        ("rank + world_size * np.arange", "rank + np.arange",
         f"{ORDER}test_every_validation_image_is_real_on_exactly_one_rank"),
        ("is_real = indices < num_images", "is_real = indices <= num_images",
         f"{ORDER}test_every_validation_image_is_real_on_exactly_one_rank"),
        ('samples["repeat"] += repeats * np.repeat', 'samples["repeat"] += 0 * np.repeat',
         "data/test_subset.py::test_a_balanced_epoch_has_as_many_of_each_class_and_no_image_and_repeat_twice"),
        ("if state[key] != value:", "if False:", f"{STATE}test_a_state_that_does_not_fit_is_refused"),
        ("<= num_rows:", "<= 2 * num_rows:", f"{STATE}test_a_state_that_does_not_fit_is_refused"),
    ],
    "data/images.py": [
        ("TrainCrops(seed, data", "TrainCrops(0, data", SETTINGS),
        ("scale, ratio, flip, data", "scale, ratio, 0.5, data", SETTINGS),
        ("scale, ratio, flip, data", "(0.08, 1.0), ratio, flip, data", SETTINGS),
        ("scale, ratio, flip, data", "scale, (3 / 4, 4 / 3), flip, data", SETTINGS),
        ("flip, data.interpolation)", 'flip, "bicubic")', SETTINGS),
        ("data.val_crop_fraction, data.interpolation)", "0.875, data.interpolation)", VAL_CUTS),
        ("data.val_crop_fraction, data.interpolation)", 'data.val_crop_fraction, "bicubic")', SETTINGS),
        ("[position[name] for name in found]", "[*range(len(found))]", RENUMBERED),
        ("np.zeros_like(images.labels), ()", "images.labels, ()", "data/test_images.py::test_ignored_labels_are_gone"),
    ],
    "data/loader.py": [
        ('"seed": self._seed, "epoch": epoch,', '"seed": self._seed, "epoch": 0,', EPOCHS),
        ('"seed": self._seed, "epoch": epoch,', '"seed": 0, "epoch": epoch,',
         "data/test_loader.py::test_the_order_follows_the_seed"),
        ('key | {"repeats": self._repeats}', "key",
         "data/test_loader.py::test_repeated_augmentation_shows_an_image_again_with_another_crop"),
        ("Augmenter(augment, seed=seed, statistics=statistics)", "Augmenter(augment, seed=0, statistics=statistics)",
         "data/test_loader.py::test_seed_and_statistics_reach_the_augmenter"),
        ("Augmenter(augment, seed=seed, statistics=statistics)", "Augmenter(augment, seed=seed, statistics=IMAGENET)",
         "data/test_loader.py::test_seed_and_statistics_reach_the_augmenter"),
        ('if split == "train" and Augmenter.has_work(augment)', "if Augmenter.has_work(augment)", AUGMENTED),
        ("data.max_val_images or num_images)", "num_images)", ONCE),
        ("* len(chosen) // self._num_val_images]", "]", ONCE),
        ("self._train_epoch(epoch, start_step * self._global_batch_size)", "self._train_epoch(epoch, 0)", SAME_BITS),
        ("labels_B = labels[chunk]", "labels_B = labels[: len(images_BHWC)]", PIXELS),
        ("first = chunk.stop", "pass", ONCE),
        ("np.where(is_real, self._images.labels", "np.where(True, self._images.labels", ONCE),
        ("self._memory.copy(images_BHWC)", "torch.from_numpy(images_BHWC)",
         COPIES),
        ("self.num_skipped += handle", "self.num_skipped = handle", SKIPPED),
        ("on_bad=self._data.on_bad", 'on_bad="stop"', SKIPPED),
        ('self._state["images"] + per_micro_batch', 'self._state["images"]',
         f"{STATE}test_a_loaded_state_continues_with_the_very_next_micro_batch_and_the_next_epochs"),
        ("epoch + whole_epochs", "epoch",
         f"{STATE}test_a_state_after_the_last_micro_batch_is_the_beginning_of_the_next_epoch"),
    ],
    "data/mixing.py": [
        ("keyed_rng(run.seed, step, place, MIX_STREAM)", "keyed_rng(run.seed, 0, place, MIX_STREAM)", MIX_KEYS),
        ("keyed_rng(run.seed, step, place, MIX_STREAM)", "keyed_rng(run.seed, step, 0, MIX_STREAM)", MIX_KEYS),
        ("keyed_rng(run.seed, step, place, MIX_STREAM)", "keyed_rng(0, step, place, MIX_STREAM)", MIX_KEYS),
        ("torch.manual_seed(int(rng.integers(2**63)))", "rng.integers(2**63)", MIX_KEYS),
        ("mix_mode=run.augment.mix_mode,", 'mix_mode="batch",', MIX_KEYS),
        ("label_smoothing=run.losses.ce.label_smoothing", "label_smoothing=0", MIX_KEYS),
        ("mixup_alpha=run.augment.mixup_alpha", "mixup_alpha=run.augment.cutmix_alpha", MIX_KEYS),
        ("cutmix_alpha=run.augment.cutmix_alpha", "cutmix_alpha=run.augment.mixup_alpha", MIX_KEYS),
        ("num_classes=run.data.num_classes", "num_classes=10", MIX_KEYS),
        ("1 - label_smoothing + floor", "1 - label_smoothing",
         f"{MIXING}test_with_both_off_images_keep_their_values_and_targets_are_smoothed_as_by_timm"),
        ("lam[i] = 1 - (bottom", "_ = 1 - (bottom", PARTNERS),
        ("partner_B, box = rng.permutation(num_images)", "partner_B, box = np.arange(num_images)[::-1]",
         f"{MIXING}test_mixing_is_a_function_of_the_generator_with_the_numbers_that_were_noted_down"),
        ("np.sqrt(1 - lam)", "1 - lam", f"{MIXING}test_the_boxes_have_the_area_that_was_drawn"),
        ('num_images if mix_mode == "element" else 1', "num_images", TIMM),
        ("(1 - weight_B1HW) * images[mixing.partner_B]", "(1 - weight_B1HW) * images.flip(0)", ELEMENT),
        ("enumerate(partner_B.tolist())", "enumerate(range(len(partner_B)))", PARTNERS),
        ("own_BCHW[place] = pasted_BCHW[partner]", "own_BCHW[partner] = pasted_BCHW[place]", PARTNERS),
        (".to(torch.float32, copy=True)", ".to(torch.float32)",
         f"{MIXING}test_targets_sum_to_one_the_input_is_not_altered_and_its_memory_format_is_kept"),
    ],
    "data/augment/augmenter.py": [
        ("sample_keys(samples, seed=self._seed)", "sample_keys(samples, seed=0)", OTHERS),
        ("interpolation=self._config.interpolation", 'interpolation="random"',
         "data/augment/test_augmenter.py::test_the_interpolation_of_the_settings_is_drawn"),
        ("layers.append(drawn.draw_three_augment(keys_B))", "layers.insert(0, drawn.draw_three_augment(keys_B))",
         "data/augment/test_augmenter.py::test_layers_follow_each_other_as_the_settings_list_them"),
        ("layers += drawn.draw_color_jitter(", "layers[:0] = drawn.draw_color_jitter(",
         "data/augment/test_augmenter.py::test_layers_follow_each_other_as_the_settings_list_them"),
        ("round(255 * value)) for value in statistics[0]", "round(255 * value)) for value in statistics[1]",
         "data/augment/test_augmenter.py::test_uncovered_pixels_have_the_models_mean_colour_as_timm_rounds_it"),
        ("probability=probability", "probability=1.0",
         EVERYTHING),
        (" or config.random_erasing)", ")", "data/augment/test_augmenter.py::test_whether_there_is_work"),
    ],
    "data/augment/policy.py": [
        ("policy.magnitude_std * normal", "0 * normal", ARGUMENTS),
        ("np.clip(magnitude_B, 0, policy.magnitude_max)", "np.clip(magnitude_B, 0, 30)", ARGUMENTS),
        ("uniform(keys_B, first + 1) >= policy.probability", "uniform(keys_B, first + 1) >= 1",
         f"{POLICY}test_operations_are_drawn_uniformly_with_replacement_and_applied_with_probability_p"),
        ("policy.num_layers * DRAWS_PER_LAYER, DRAWS_PER_LAYER)", "2 * DRAWS_PER_LAYER, DRAWS_PER_LAYER)",
         f"{POLICY}test_operations_are_drawn_uniformly_with_replacement_and_applied_with_probability_p"),
        ("256 - threshold_N if is_increasing", "threshold_N if is_increasing", LEVELS),
        ("1.0 + sign_N * (level_N * 0.9)", "1.0 + (level_N * 0.9)", LEVELS),
        ("THREE_AUGMENT_DRAWS = RAND_AUGMENT_DRAWS + MAX_LAYERS * DRAWS_PER_LAYER",
         "THREE_AUGMENT_DRAWS = RAND_AUGMENT_DRAWS",
         f"{POLICY}test_no_two_purposes_share_a_draw"),
        ("0.1 + 1.9 * uniform", "2 * uniform", f"{POLICY}test_three_augment_draws_its_three_operations_at_even_odds"),
        ("1 - strength + 2 * strength", "1 + strength",
         f"{POLICY}test_color_jitter_gives_each_image_all_three_in_one_of_six_orders"),
        ("np.exp(LOG_ASPECT * (2", "np.exp(0 * (2",
         f"{POLICY}test_rectangles_are_distributed_as_timms_and_stay_in_the_image"),
    ],
    "data/bad_images.py": [
        ("labels_B[i] = PADDING_LABEL", "pass",
         "data/test_bad_images.py::test_skip_leaves_the_image_out_in_validation_and_gives_up_when_nothing_decodes"),
        ("int(images.labels[other", "int(images.labels[sample", SKIPPED),
        ("images.chosen[(place + step) %", "images.chosen[(place + step + 1) %",
         "data/test_bad_images.py::test_the_very_next_image_takes_the_place"),
    ],
    "data/subset.py": [
        ('must_have_all=split == "train"', "must_have_all=False",
         "data/test_subset.py::test_classes_are_numbered_by_their_list_in_both_splits_and_counted"),
        ("np.ceil(fraction * counts)", "np.floor(fraction * counts)", FRACTION),
        ('if split == "train":', "if True:", FRACTION),
        ("np.intersect1d(chosen, _read_indices(data.indices, len(labels)))", "_read_indices(data.indices, len(labels))",
         "data/test_subset.py::test_what_is_chosen_is_the_meet_of_all_three"),
    ],
    "data/normalize.py": [
        ("1 / (255 * std_3)", "1 / (256 * std_3)",
         "data/test_normalize.py::test_images_are_those_of_trainings_own_normalisation_padding_rows_too"),
    ],
}  # fmt: skip
