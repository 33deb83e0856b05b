"""Mistakes in reading data sets: files, classes and damage that would be ignored silently."""

WEBDATASET = "data/sources/test_webdataset.py::"
ENDINGS = f"{WEBDATASET}test_samples_with_other_image_endings_are_counted_and_the_first_is_named"
RANGES = f"{WEBDATASET}test_a_range_of_millions_ends_at_the_first_missing_tar_and_names_no_tar_twice"
ODD_NUMBERS = f"{WEBDATASET}test_one_invalid_class_number_does_not_turn_the_others_into_names"
MIXED = f"{WEBDATASET}test_numbers_among_names_are_names_with_a_warning"
MARKED = f"{WEBDATASET}test_numbers_after_a_byte_order_mark_are_numbers_and_very_long_names_stay_distinct"
UNFIT_SAMPLES = f"{WEBDATASET}test_tars_without_whole_samples_are_rejected"
HUGGING_FACE = "data/sources/test_huggingface.py::"
PARTS = f"{HUGGING_FACE}test_parquet_files_with_missing_or_foreign_members_are_rejected"
PATHS = f"{HUGGING_FACE}test_a_row_cannot_name_a_file_outside_the_data_set_or_a_pipe_or_device"
HOLLOW = f"{HUGGING_FACE}test_rows_with_neither_bytes_nor_path_are_counted_and_named"
FOLDERS = "data/sources/test_folder_order.py::"
ORDER = f"{FOLDERS}test_images_have_torchvisions_labels_and_order"
HIDDEN = f"{FOLDERS}test_hidden_files_and_folders_which_torchvision_reads_are_counted"
LOOSE = f"{FOLDERS}test_images_and_dangling_links_next_to_class_folders_are_counted"
UNLISTED = f"{FOLDERS}test_an_unlistable_folder_is_rejected_and_does_not_count_as_empty"
EARLIER = f"{FOLDERS}test_nested_folders_packed_by_an_earlier_version_are_used_until_they_change"
ODD_FILES = "data/sources/test_odd_files.py::"
IMAGENET = f"{ODD_FILES}test_non_image_files_in_and_among_imagenets_tars_are_counted"
LINKS = f"{ODD_FILES}test_a_hard_link_in_a_tar_is_its_target_and_other_irregular_members_are_counted"
PIPES = f"{ODD_FILES}test_a_pipe_or_device_named_like_an_image_or_tar_is_rejected_at_once"
ENCODING = "commands/pack/test_encode.py::"
DAMAGED = f"{ENCODING}test_damaged_files_and_files_that_are_not_images_are_rejected"
DAMAGED_SCAN = f"{ENCODING}test_a_jpeg_with_a_damaged_scan_is_rejected_although_pillow_decodes_it"
SEGMENT = f"{ENCODING}test_a_damaged_segment_between_restart_markers_is_rejected_at_any_position"
NO_END = f"{ENCODING}test_a_jpeg_that_lacks_only_its_end_marker_is_stored_with_the_pixels_of_the_whole_one"
NO_END_READ = (
    "data/test_torchvision.py::"
    "test_a_jpeg_that_lacks_only_its_end_marker_has_the_pixels_of_the_whole_one_in_both_backends"
)
LOSSLESS = f"{ENCODING}test_a_lossless_jpeg_is_not_called_damaged"
LIBTIFF = "data/test_image_file.py::test_libtiffs_messages_are_in_our_errors_and_not_on_stderr"
INDICES = "data/test_subset.py::test_an_index_file_gives_the_training_images"
ONE_CLASS = "data/test_classes.py::test_one_class_is_an_error_whose_remedy_passes_the_next_check"

MISTAKES = {
    "data/sources/webdataset.py": {
        "open_samples": {
            "if without: ... =>": ENDINGS,
            "len(without) + len(samples) => len(samples)": ENDINGS,
            "warn_of_left_out(...) =>": ENDINGS,
        },
        "_tars": {
            "warn_of_left_out(...) =>": f"{WEBDATASET}test_other_files_in_a_folder_of_tars_are_counted",
            "if not found: ... =>": RANGES,
            "if tar in tars: ... =>": RANGES,
        },
        "_samples": {
            "others.setdefault(key, member.name) =>": ENDINGS,
            "hidden.append(...) =>": ENDINGS,
            "if key in kept: ... =>": UNFIT_SAMPLES,
            "ending.lower() => ending": f"{WEBDATASET}test_folders_tars_and_patterns_give_their_tars",
        },
        "_class_text": {
            "'utf-8-sig' => 'utf-8'": MARKED,
            "member.size > MAX_CLASS_BYTES => False": UNFIT_SAMPLES,
        },
        "_classes": {
            "all(...) => any(...)": MIXED,
            "_check_are_names(texts, names) =>": ODD_NUMBERS,
        },
        "_check_are_names": {
            "are_mixed or len(odd) == len(texts) => are_mixed": ODD_NUMBERS,
            "are_mixed or len(odd) == len(texts) => len(odd) == len(texts)": ODD_NUMBERS,
            "if are_mixed: ... =>": MIXED,
        },
    },
    "data/sources/huggingface.py": {
        "": {
            "re.compile(...) => re.compile('(.+?)(-(\\\\d{5})-of-(\\\\d{5}).*)?\\\\.parquet$')": PARTS,
        },
        "_parquet": {
            "_check_parts(...) =>": PARTS,
        },
        "_parquet_files": {
            "[*src.glob('*.parquet'), *src.glob('data/*.parquet')] => [*src.glob('*.parquet')]": (
                f"{HUGGING_FACE}test_parquet_files_of_the_hub_are_read_byte_for_byte"
            ),
            "sorted([*src.glob('*.parquet'), *src.glob('data/*.parquet')])"
            " => sorted(src.glob('*.parquet')) or sorted(src.glob('data/*.parquet'))": PARTS,
        },
        "_check_parts": {
            "if absent: ... =>": PARTS,
            "if other: ... =>": PARTS,
            "len(numbers) > int(total) => False": PARTS,
            "range(int(total)) => range(max(numbers))": PARTS,
        },
        "_file_inside": {
            "file.is_relative_to(folder) => True": PATHS,
            "os.path.isfile(file) => file.exists()": PATHS,
            "os.path.realpath(folder / path) => os.path.abspath(folder / path)": PATHS,
        },
        "open_hugging_face.read": {
            "_file_inside(folder, path, row=index) => (folder / path)": PATHS,
        },
        "_names_and_sizes": {
            "if hollow: ... =>": HOLLOW,
            "hollow += [] if path else [len(names)] =>": HOLLOW,
        },
    },
    "data/sources/folder.py": {
        "_walk": {
            "onerror=_cannot_list =>": UNLISTED,
            "(*folders, *names) => names": HIDDEN,
        },
        "_images": {
            "sorted(_walk(top, visited)) => _walk(top, visited)": ORDER,
            "sorted(names) => names": ORDER,
            "hidden += ... =>": HIDDEN,
        },
        "list_images": {
            "warn_of_left_out(...) =>": LOOSE,
            "_warn_of_others(others, hidden) =>": HIDDEN,
            "_images(src / name, visited, others, hidden) => _images(src / name, visited, others, [])": HIDDEN,
        },
        "list_unlabelled": {
            "_warn_of_others(others, hidden) =>": HIDDEN,
        },
        "_size": {
            "if not stat.S_ISREG(found.st_mode): ... =>": PIPES,
        },
        "earlier_fingerprint.place": {
            "(0, name) => (2, name)": EARLIER,
        },
    },
    "data/sources/imagenet.py": {
        "open_class_tars": {
            "warn_of_left_out('files other than class tars', ...) =>": IMAGENET,
            "warn_of_left_out(NO_IMAGES, others) =>": IMAGENET,
        },
        "open_flat_tar": {
            "warn_of_left_out(NO_IMAGES, others) =>": IMAGENET,
        },
        "_images_of": {
            "others.append(...) =>": IMAGENET,
        },
    },
    "data/sources/source.py": {
        "warn_of_left_out": {
            "len(names) => 1": IMAGENET,
        },
    },
    "data/sources/tar.py": {
        "list_members": {
            "if others: ... =>": LINKS,
            "if not path.is_file(): ... =>": PIPES,
        },
    },
    "data/beton/verify.py": {
        "check_jpeg": {
            "(BAD_JPEG, MISSING_SCANS, UNKNOWN_KIND) => (BAD_JPEG, UNKNOWN_KIND)": DAMAGED_SCAN,
            "(BAD_JPEG, MISSING_SCANS, UNKNOWN_KIND) => (BAD_JPEG, MISSING_SCANS)": LOSSLESS,
            "(BAD_JPEG, MISSING_SCANS, UNKNOWN_KIND) => (MISSING_SCANS, UNKNOWN_KIND)": DAMAGED_SCAN,
        },
        "jpeg_status": {
            "image['thorough'] = 1 =>": SEGMENT,
        },
    },
    "data/image_file.py": {
        "load_rgb": {
            "is_checked and check(..., **...) => False": NO_END_READ,
            "load_rgb(ended(content)) => to_rgb(image)": NO_END_READ,
        },
        "opened": {
            "not content => False": DAMAGED,
        },
        "to_rgb": {
            "if messages: ... =>": LIBTIFF,
            "'; '.join([str(error), *messages[:1]]) => str(error)": LIBTIFF,
        },
    },
    "data/libtiff.py": {
        "messages": {
            "_listen() =>": LIBTIFF,
        },
    },
    "commands/pack/encode.py": {
        "encode": {
            "load_rgb(ended(content)) if is_read else to_rgb(image) => to_rgb(image)": NO_END,
        },
        "_marked": {
            "ended(content) => content": NO_END,
        },
    },
    "data/subset.py": {
        "_read_indices": {
            "if len(twice): ... =>": INDICES,
            "counts > 1 => counts > 2": INDICES,
        },
    },
    "data/classes.py": {
        "check_is_not_one": {
            "num_classes == 1 => False": ONE_CLASS,
        },
        "count_classes": {
            "check_is_not_one(...) =>": ONE_CLASS,
        },
    },
}
