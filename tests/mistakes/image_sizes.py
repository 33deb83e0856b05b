"""Mistakes in progressive resolution (data.image_sizes), in all folders."""

CONFIG = "config/test_image_sizes.py::test_"
PHASES = f"{CONFIG}a_phase_ends_at_the_epoch_end_nearest_to_its_part_of_the_run"
STRENGTH = f"{CONFIG}randaugment_gets_stronger_by_the_same_amount_each_epoch"
REFUSED = f"{CONFIG}sizes_that_do_not_fit_the_run_are_rejected_before_any_model_is_built"
PARTS = f"{CONFIG}phases_are_parts_of_the_steps_that_a_run_makes"
PIXELS = "data/test_image_sizes.py::test_each_epoch_has_the_pixels_of_a_loader_with_its_size_and_magnitude"
MODELS = "models/test_image_sizes.py::test_"
UNFIT = f"{MODELS}models_and_sizes_that_do_not_fit_are_rejected"
LOSSES = "losses/test_image_sizes.py::test_"
SCALED = f"{LOSSES}vitkds_sums_are_scaled_by_full_patches_over_patches"
RESUMED = "train/test_image_sizes.py::test_a_run_resumes_bit_for_bit_within_and_across_phases"
REHEARSED = "train/test_image_sizes.py::test_a_rehearsal_changes_no_bit_and_leaves_nothing_to_compile_at_any_size"

MISTAKES = {
    "config/image_sizes.py": {
        "Phases.size_at": {
            "epoch < end => epoch <= end": PHASES,
        },
        "Phases.strength_at": {
            "self.ends[-1] - 1 => self.ends[-1]": STRENGTH,
        },
        "phases_of": {
            "num_epochs * end => num_epochs * end // 2": PHASES,
        },
        "check_sizes": {
            "later <= size => later < size": REFUSED,
            "sizes[-1] != image_size => sizes[-1] > image_size": REFUSED,
        },
        "check_phases": {
            "start == end => False": REFUSED,
        },
    },
    "config/check.py": {
        "_check_image_sizes": {
            "teacher.image_size not in (0, run.data.image_size) => False": REFUSED,
            "not run.debug => True": f"{CONFIG}sizes_that_fit_are_accepted",
        },
    },
    "data/crops.py": {
        "TrainCrops.size_of": {
            "self.phases.size_at(epoch_of(samples)) if self.phases else self.size => self.size": PIXELS,
        },
        "TrainCrops.rows": {
            "self.size_of(samples) => self.size": PIXELS,
        },
    },
    "data/images.py": {
        "open_images": {
            "replace(crops, phases=phases) => crops": PIXELS,
        },
    },
    "data/loader.py": {
        "build_loader": {
            "Augmenter(augment, seed=seed, statistics=statistics, phases=phases)"
            " => Augmenter(augment, seed=seed, statistics=statistics)": PIXELS,
        },
    },
    "data/augment/augmenter.py": {
        "Augmenter._layers": {
            "strength * self._rand_augment.magnitude => self._rand_augment.magnitude": PIXELS,
        },
        "Augmenter.__init__": {
            "self._rand_augment.is_increasing => True": (
                "data/test_image_sizes.py::test_a_randaugment_that_is_strongest_at_low_magnitudes_is_rejected"
            ),
        },
    },
    "models/create.py": {
        "create": {
            "data.image_sizes and (not isinstance(default, TOKEN_MODELS)) => False": UNFIT,
            "sizes_of(data.image_sizes) => ()": UNFIT,
            "args['dynamic_img_size'] = True => pass": (
                f"{MODELS}at_a_smaller_size_the_model_is_timms_of_that_size_with_a_resized_position_embedding"
            ),
        },
    },
    "models/distiller.py": {
        "Distiller.forward": {
            "n * attention_BP.shape[1] // whole => n": (
                "models/test_distiller.py::test_of_smaller_images_the_teacher_sees_the_same_fraction_of_the_patches"
            ),
        },
    },
    "losses/part.py": {
        "grid_of": {
            "num_patches * rows // columns => num_patches": (
                f"{LOSSES}a_smaller_grid_has_the_proportions_of_the_whole_one"
            ),
        },
    },
    "losses/vitkd.py": {
        "ViTKDLoss.forward": {
            "math.prod(whole_grid) / num_tokens => 1": SCALED,
            "scale = PAPER_SUMMANDS / (...) => scale *= PAPER_SUMMANDS / (num_tokens * self.teacher_dim)": (
                f"{LOSSES}scaled_vitkd_divides_by_the_actual_number_of_tokens_once"
            ),
        },
    },
    "losses/spectral.py": {
        "Spectral.forward": {
            "grid_of(maps[0][0].shape[1], self.pair.student_grid) => self.pair.student_grid": (
                f"{LOSSES}spectral_uses_the_grid_of_the_actual_tokens"
            ),
        },
    },
    "losses/feature.py": {
        "Feature._compared": {
            "grid_of(target_BPD.shape[1], self.pair.teacher_grid) => self.pair.teacher_grid": (
                f"{LOSSES}feature_resizes_between_the_grids_of_the_actual_tokens"
            ),
        },
    },
    "train/schedule.py": {
        "build_phases": {
            "not run.debug => False": PARTS,
        },
        "Schedule.num_epochs": {
            "-(-self.total_steps // self.steps_per_epoch) => self.total_steps // self.steps_per_epoch": PARTS,
        },
    },
    "train/parts.py": {
        "build_parts": {
            "open_split(..., phases=phases) => open_split(run, 'train', split.micro_batch_size, device)": REHEARSED,
        },
    },
    "train/teacher_check.py": {
        "check_teacher": {
            "image_size=size => image_size=run.data.image_size": RESUMED,
        },
    },
    "train/introduction.py": {
        "describe_run": {
            "content['phases'] = phases => pass": RESUMED,
        },
    },
    "train/rehearsal.py": {
        "compile_sizes": {
            "parts.engine.rehearse(*arguments, weights) => pass": REHEARSED,
            "torch._dynamo.config.recompile_limit = ... =>": REHEARSED,
        },
    },
    "engine/student.py": {
        "StudentEngine.rehearse": {
            "buffer.copy_(before) => pass": REHEARSED,
            "torch.autograd.grad(total, self._flat.flats, allow_unused=True) => total.backward()": REHEARSED,
        },
        "StudentEngine.__init__": {
            "{'dynamic': False, **...} => {**...}": REHEARSED,
        },
    },
}
