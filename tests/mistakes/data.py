"""Mistakes in vitkd_ds/data."""

CROPS = "data/test_crops.py::"
ORDER = "data/test_order.py::"
KEYS = f"{CROPS}test_a_crop_depends_on_image_repeat_epoch_and_seed_but_not_on_the_order"
BOXES = f"{CROPS}test_boxes_have_torchvisions_distribution"
FLIPS = f"{CROPS}test_flips_and_filters_have_their_probability_and_can_be_fixed"
CENTRE = f"{CROPS}test_the_centre_crop_equals_torchvisions_resize_and_centre_crop"
PIXELS = "data/test_loader.py::test_pixels_equal_the_crop_resized_and_flipped_by_pillow"
EPOCHS = "data/test_loader.py::test_epochs_and_neighbouring_seeds_differ_and_two_epochs_may_be_open_at_once"
SAME_BITS = "data/test_loader.py::test_any_threads_ranks_device_name_or_resumed_epoch_give_the_same_bits"
COPIES = "data/test_loader.py::test_micro_batches_are_uint8_copies_in_memory_reused_once_released"
ONCE = "data/test_loader.py::test_validation_sees_each_image_exactly_once_at_any_number_of_ranks_in_both_backends"
VAL_CUTS = "data/test_loader.py::test_validation_crops_by_its_settings_like_torchvision"
AUGMENTED = "data/test_loader.py::test_augmentation_follows_the_image_and_not_its_micro_batch"
SETTINGS = "data/test_images.py::test_crop_settings_reach_the_crops"
SHUFFLED = f"{ORDER}test_an_epoch_shows_images_at_most_once_in_a_new_order_and_whole_global_batches"
REPEATED = f"{ORDER}test_repeated_augmentation_shows_some_images_several_times_and_keeps_the_length"
SAME_SET = f"{ORDER}test_a_step_has_the_same_set_of_images_at_any_number_of_ranks"
STATE = "data/test_loader_state.py::"
SKIPPED = "data/test_bad_images.py::test_skip_substitutes_the_next_decodable_image_and_counts"
RENUMBERED = "data/test_images.py::test_images_of_a_subset_or_another_order_keep_their_labels"

MISTAKES = {
    "data/draws.py": {
        "image_keys": {
            "keyed_rng(seed, epoch, IMAGE_STREAM) => keyed_rng(seed, 0, IMAGE_STREAM)": KEYS,
            "keyed_rng(seed, epoch, IMAGE_STREAM) => keyed_rng(0, epoch, IMAGE_STREAM)": KEYS,
            "keyed_rng(seed, epoch, IMAGE_STREAM) => keyed_rng(seed + epoch, IMAGE_STREAM)": KEYS,
            "indices_N.astype(np.uint64) | repeats_N.astype(np.uint64) << np.uint64(48)"
            " => indices_N.astype(np.uint64)": KEYS,
        },
        "epoch_of": {
            "int(samples['epoch'][0]) if len(samples) else 0 => 0": KEYS,
        },
        "keyed_rng": {
            "[len(key), *key] => [*key]": (
                "data/test_draws.py::test_keys_all_differ_and_every_part_of_a_key_affects_the_random_draws"
            ),
        },
        "normal": {
            "2 * math.pi => math.pi": (
                (
                    "data/test_draws.py::test_draws_are_uniform_and_normal",
                    "cos(pi u) of a uniform u is distributed as cos(2 pi u)",
                )
            ),
            "draw + 1 => draw": "data/test_draws.py::test_draws_are_uniform_and_normal",
        },
    },
    "data/crops.py": {
        "TrainCrops.rows": {
            "self.flip_probability => 0.5": FLIPS,
            "heights - box_heights + 1 => heights - box_heights + 2": (
                f"{CROPS}test_boxes_lie_inside_the_image_and_have_an_area"
            ),
            "heights - box_heights + 1 => heights - box_heights": f"{CROPS}test_all_box_positions_are_equally_likely",
            "widths - box_widths + 1 => widths - box_widths": f"{CROPS}test_all_box_positions_are_equally_likely",
        },
        "": {
            "CROP_DRAWS + 1 => CROP_DRAWS": FLIPS,
            "CROP_DRAWS + 2 => CROP_DRAWS": f"{CROPS}test_flips_and_boxes_share_no_random_draw",
            "NUM_TRIES = 10 => NUM_TRIES = 1": f"{CROPS}test_a_box_that_does_not_fit_is_redrawn_ten_times",
        },
        "TrainCrops._try": {
            "np.exp(low + (high - low) * ratio_u) => np.exp(low) + (np.exp(high) - np.exp(low)) * ratio_u": (
                f"{CROPS}test_ratios_are_log_uniform"
            ),
            "(self.scale[1] - self.scale[0]) * area_u => (self.scale[1] - self.scale[0]) * area_u ** 2": BOXES,
            "(areas / ratios, areas * ratios) => (areas * ratios, areas / ratios)": (
                f"{CROPS}test_ratios_are_log_uniform"
            ),
            "FIRST_BOX_DRAW + attempt * DRAWS_PER_TRY => FIRST_BOX_DRAW": (
                f"{CROPS}test_a_box_that_does_not_fit_is_redrawn_ten_times"
            ),
        },
        "CentreCrops.rows": {
            "math.floor => round": CENTRE,
            "shorter * lengths_N // shorter_N => np.rint(shorter * lengths_N / shorter_N)": CENTRE,
            "np.rint => np.floor": CENTRE,
            "val_interpolation(self.interpolation) => 'bicubic'": (
                f"{CROPS}test_evaluation_resizes_by_the_filter_of_the_settings"
            ),
        },
        "val_interpolation": {
            "'bicubic' if interpolation == 'random' else interpolation"
            " => 'bilinear' if interpolation == 'random' else interpolation": (
                f"{CROPS}test_evaluation_resizes_by_the_filter_of_the_settings"
            ),
        },
        "_central_boxes": {
            "((heights_N - box_heights_N) // 2, (widths_N - box_widths_N) // 2, ...)"
            " => (0 * heights_N, 0 * widths_N, ...)": BOXES,
        },
    },
    "data/order.py": {
        "random_order": {
            "keyed_rng(seed, epoch, ORDER_STREAM) => keyed_rng(seed, 0, ORDER_STREAM)": SHUFFLED,
            "keyed_rng(seed, epoch, ORDER_STREAM) => keyed_rng(0, epoch, ORDER_STREAM)": SHUFFLED,
            "samples[:, apart] => samples": REPEATED,
        },
        "class_balanced_order": {
            "keyed_rng(seed, epoch, ORDER_STREAM) => keyed_rng(seed, ORDER_STREAM)": (
                "data/test_subset.py::test_a_balanced_epoch_has_equal_classes_and_no_image_and_repeat_twice"
            ),
            "repeats * ... => 0 * ...": (
                "data/test_subset.py::test_a_balanced_epoch_has_equal_classes_and_no_image_and_repeat_twice"
            ),
        },
        "quasi_random_order": {
            "keyed_rng(seed, epoch, ORDER_STREAM) => keyed_rng(seed, ORDER_STREAM)": SHUFFLED,
        },
        "_repeated": {
            "samples['epoch'] = epoch => samples['epoch'] = 0": (
                "data/test_loader.py::test_an_image_gets_a_new_crop_in_each_epoch"
            ),
            "np.arange(samples.shape[-1]) % repeats => 0": REPEATED,
        },
        "rank_slice": {
            "samples.reshape(-1, world_size, micro_batch_size)[:, rank]"
            " => samples.reshape(world_size, -1, micro_batch_size)[rank]": SAME_SET,
        },
        "val_share": {
            "world_size * np.arange(-(-num_images // world_size), dtype=np.int64)"
            " => np.arange(-(-num_images // world_size), dtype=np.int64)": (
                f"{ORDER}test_every_validation_image_is_real_on_exactly_one_rank"
            ),
            "indices < num_images => indices <= num_images": (
                f"{ORDER}test_every_validation_image_is_real_on_exactly_one_rank"
            ),
        },
        "check_state": {
            "state[key] != value => False": f"{STATE}test_an_incompatible_state_is_rejected",
            "0 <= state['images'] <= num_rows => 0 <= state['images'] <= 2 * num_rows": (
                f"{STATE}test_an_incompatible_state_is_rejected"
            ),
        },
    },
    "data/images.py": {
        "crops_of": {
            "TrainCrops(seed, ..., scale, ratio, flip, ...) => TrainCrops(0, ..., scale, ratio, flip, ...)": SETTINGS,
            "TrainCrops(seed, ..., scale, ratio, flip, ...) => TrainCrops(seed, ..., scale, ratio, 0.5, ...)": SETTINGS,
            "TrainCrops(seed, ..., scale, ratio, flip, ...) => TrainCrops(seed, ..., (0.08, 1.0), ratio, flip, ...)": (
                SETTINGS
            ),
            "TrainCrops(seed, ..., scale, ratio, flip, ...)"
            " => TrainCrops(seed, ..., scale, (3 / 4, 4 / 3), flip, ...)": SETTINGS,
            "TrainCrops(seed, ..., scale, ratio, flip, data.interpolation)"
            " => TrainCrops(seed, ..., scale, ratio, flip, 'bicubic')": SETTINGS,
            "data.val_crop_fraction => 0.875": VAL_CUTS,
            "CentreCrops(..., data.interpolation) => CentreCrops(..., 'bicubic')": SETTINGS,
        },
        "_renumber": {
            "[position[name] for name in found] => [*range(len(found))]": RENUMBERED,
        },
        "open_images": {
            "np.zeros_like(images.labels) => images.labels": "data/test_images.py::test_ignored_labels_are_removed",
        },
    },
    "data/loader.py": {
        "build_loader": {
            "seed=seed => seed=0": "data/test_loader.py::test_seed_and_statistics_reach_the_augmenter",
            "statistics=statistics => statistics=IMAGENET": (
                "data/test_loader.py::test_seed_and_statistics_reach_the_augmenter"
            ),
            "split == 'train' and Augmenter.has_work(augment) => Augmenter.has_work(augment)": AUGMENTED,
        },
    },
    "data/epochs.py": {
        "Loader._train_order": {
            "{'seed': self._seed, 'epoch': epoch, **...} => {'seed': self._seed, 'epoch': 0, **...}": EPOCHS,
            "self._seed => 0": "data/test_loader.py::test_the_order_follows_the_seed",
            "key | {'repeats': self._repeats} => key": (
                "data/test_loader.py::test_repeated_augmentation_shows_an_image_again_with_another_crop"
            ),
        },
        "Loader.__init__": {
            "data.max_val_images or num_images => num_images": ONCE,
        },
        "Loader.val_numbers": {
            "np.arange(self._num_val_images, dtype=np.int64) * len(chosen) // self._num_val_images"
            " => np.arange(self._num_val_images, dtype=np.int64)": ONCE,
        },
        "Loader.epoch": {
            "start_step * self._global_batch_size => 0": SAME_BITS,
        },
        "Loader._micro_batches": {
            "labels[chunk] => labels[:len(images_BHWC)]": PIXELS,
            "first = chunk.stop => pass": ONCE,
            "self._memory.copy => torch.from_numpy": COPIES,
            "self.num_skipped += ... => self.num_skipped = ...": SKIPPED,
            "self._data.on_bad => 'stop'": SKIPPED,
        },
        "Loader._val_samples": {
            "np.where(is_real, ..., PADDING_LABEL) => np.where(True, ..., PADDING_LABEL)": ONCE,
        },
        "Loader._rest_of_epoch": {
            "self._state['images'] + per_micro_batch => self._state['images']": (
                f"{STATE}test_a_loaded_state_continues_with_the_very_next_micro_batch_and_the_next_epochs"
            ),
        },
        "Loader._set_state": {
            "epoch + whole_epochs => epoch": (
                f"{STATE}test_a_state_after_the_last_micro_batch_resumes_at_the_next_epoch"
            ),
        },
    },
}
