"""Iterate over one split's micro-batches on one rank, from the start or a saved position.

Every random number depends only on seed, epoch, image and repeat. Therefore, an iteration that starts at a later step
gives the same bits as an uninterrupted one. `torch.distributed` is not imported: rank and world size are arguments.
"""

from collections.abc import Iterator
from contextlib import closing
from weakref import WeakSet

import numpy as np
import torch

from vitkd_ds.config.run import DataConfig
from vitkd_ds.data import order
from vitkd_ds.data.bad_images import PADDING_LABEL, handle_bad_images
from vitkd_ds.data.colours import Statistics
from vitkd_ds.data.images import Images
from vitkd_ds.data.normalize import build_normalizer
from vitkd_ds.data.transfer import CopyStream, RecycledMemory, send

MicroBatches = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""Iterator over pairs of images_BCHW and labels_B (int64), which are copies on the loader's device.

The images are RGB, with channels last in memory. They are uint8, or fp32 if they are normalised.
"""


class Loader:
    """Loader of one split's micro-batches on one rank, from `build_loader`. Its `len` is `num_batches`.

    If the loader is used in a `with` statement, it is closed at the end of the block.

    Attributes:
        classes: class names in label order.
        steps_per_epoch: optimizer steps per epoch; in validation, equal to `num_batches`.
        num_batches: micro-batches per rank and epoch.
        num_skipped: number of images of this rank that were skipped so far, because they could not be decoded.
        fingerprint: see `vitkd_ds.data.images.Images.fingerprint`.
        content: see `vitkd_ds.data.images.Images.content`.
        indices_B: number in the file of each image in the last micro-batch, int64. If an image was replaced because it
            could not be decoded, its own number is listed, not the substitute's number.
    """

    def __init__(
        self,
        images: Images,
        data: DataConfig,
        *,
        split: str,
        repeats: int,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        global_batch_size: int,
        seed: int,
        device: torch.device,
        normalize: Statistics | None,
    ):
        self.path = images.path
        self.classes = images.classes
        self.fingerprint = images.fingerprint
        self.content = images.content
        self._images = images
        self._data = data
        self._seed = seed
        self._device = device
        self._rank = rank
        self._sizes = {"world_size": world_size, "micro_batch_size": micro_batch_size}
        self._is_train = split == "train"
        self._repeats = repeats
        self._global_batch_size = global_batch_size
        self.num_skipped = 0
        self.indices_B = np.zeros(0, np.int64)
        self._running: WeakSet[MicroBatches] = WeakSet()
        self._is_closed = False
        self._normalize = build_normalizer(normalize, device) if normalize is not None else None
        # With a GPU, FFCV's buffers are pinned, so copies can overlap with computation.
        self._copies = CopyStream(device) if device.type == "cuda" else None
        self._memory = RecycledMemory()
        self._state = {"epoch": 0, "images": 0}
        self._iterator = None
        order.check_rank(rank, world_size)
        num_images = len(images.chosen)
        if self._is_train:
            self.steps_per_epoch = order.steps_per_epoch(num_images, global_batch_size=global_batch_size)
            accumulation_steps = order.accumulation_steps(global_batch_size=global_batch_size, **self._sizes)
            self.num_batches = self.steps_per_epoch * accumulation_steps
        else:
            self._num_val_images = min(num_images, data.max_val_images or num_images)
            rows_per_rank = -(-self._num_val_images // world_size)
            self.num_batches = self.steps_per_epoch = -(-rows_per_rank // micro_batch_size)
        self._num_rows = self.steps_per_epoch * global_batch_size  # images per training epoch over all ranks

    def __len__(self) -> int:
        return self.num_batches

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all iterators and close the file; a second call does nothing.

        Iterators that are still running end without an error. Starting a new one raises ValueError.
        """
        self._is_closed = True
        try:
            for micro_batches in list(self._running):
                micro_batches.close()
        finally:
            self._images.close()

    def epoch(self, epoch: int, *, start_step: int = 0) -> MicroBatches:
        """Iterate over one epoch.

        In validation, the last micro-batch may be smaller than the others; it has the same size on all ranks. Rows that
        only pad a rank's share have the label -1. If a loop ends early, decoding stops when the iterator is closed or
        garbage-collected.

        Args:
            epoch: number that determines order, crops and augmentation in training; ignored in validation.
            start_step: number of optimizer steps (micro-batches in validation) to skip. The remaining ones equal those
                of an uninterrupted epoch bit for bit.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(
                f"start_step must be in [0, {self.steps_per_epoch}], the steps per epoch of {self.path!r}, got "
                f"{start_step}. Resume with the checkpoint's batch size and data."
            )
        if self._is_train:
            return self._train_epoch(epoch, start_step * self._global_batch_size)
        samples, labels = self._val_samples()
        done = start_step * self._sizes["micro_batch_size"]
        return self._begin(samples[done:], labels[done:])

    def __iter__(self) -> MicroBatches:
        """Iterate over the rest of the current epoch; at its end, the next epoch becomes the current one.

        In validation, all epochs are the same. In training, an iterator raises ValueError if it is used after a newer
        one was started or a state was loaded.
        """
        if not self._is_train:
            return self.epoch(0)
        self._iterator = object()
        return self._rest_of_epoch(self._iterator)

    def _rest_of_epoch(self, iterator: object) -> MicroBatches:
        self._check_current(iterator)
        per_micro_batch = self._sizes["world_size"] * self._sizes["micro_batch_size"]
        with closing(self._train_epoch(self._state["epoch"], self._state["images"])) as micro_batches:
            for micro_batch in micro_batches:
                self._check_current(iterator)
                self._set_state(self._state["epoch"], self._state["images"] + per_micro_batch)
                yield micro_batch

    def _check_current(self, iterator: object) -> None:
        if iterator is not self._iterator:
            raise ValueError(
                f"this iterator of {self.path!r} is outdated, because a newer one was started or a state was loaded. "
                "Start a new one, or use epoch(), which has no state."
            )

    def _set_state(self, epoch: int, images: int) -> None:
        """Record how many images of an epoch all ranks have taken. The end of an epoch is the start of the next one."""
        whole_epochs, images = divmod(images, self._num_rows)
        self._state = {"epoch": epoch + whole_epochs, "images": images}

    def state_dict(self) -> dict[str, int | str]:
        """Return the position that `iter(loader)` has reached, and the settings that determine the order.

        The position is the epoch and the number of its images that all ranks together have taken. Ranks that have taken
        the same number of micro-batches have equal states.
        """
        return self._state | self._identity()

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue after a saved position; the number of ranks and the micro-batch size may have changed.

        Raises:
            ValueError: the state is damaged; it was saved with other data or another order, seed, global batch size or
                number of repeats; or the remaining images of the epoch cannot be divided evenly among the ranks.
        """
        order.check_state(state, self._identity(), num_rows=self._num_rows)
        self._take_share(np.arange(state["images"], self._num_rows))
        self._set_state(state["epoch"], state["images"])
        self._iterator = None

    def _identity(self) -> dict[str, int | str]:
        if not self._is_train:
            raise ValueError("only a training loader has a state, got split val. Iterate over epoch(0).")
        return {
            "seed": self._seed,
            "num_images": len(self._images.chosen),
            "global_batch_size": self._global_batch_size,
            "repeats": self._repeats,
            "order": self._data.order,
            "fingerprint": self.fingerprint,
        }

    def _take_share(self, samples: np.ndarray) -> np.ndarray:
        return order.rank_slice(samples, rank=self._rank, **self._sizes)

    def _train_epoch(self, epoch: int, num_done: int) -> MicroBatches:
        self._check_open()
        samples = self._take_share(self._train_order(epoch)[num_done:])
        return self._begin(samples, self._images.labels[samples["index"]])

    def _train_order(self, epoch: int) -> np.ndarray:
        key = {"seed": self._seed, "epoch": epoch, "global_batch_size": self._global_batch_size}
        key = key | {"repeats": self._repeats}
        chosen = self._images.chosen
        if self._data.order == "random":
            samples = order.random_order(len(chosen), **key)
        elif self._data.order == "class_balanced":
            samples = order.class_balanced_order(self._images.labels[chosen], **key)
        else:
            pages = self._images.pages()
            samples = order.quasi_random_order(**pages | {"offsets_N": pages["offsets_N"][chosen]}, **key)
        samples["index"] = chosen[samples["index"]]
        return samples

    def train_numbers(self, epoch: int, step: int) -> list[np.ndarray]:
        """Return the numbers in the file of a training step's images: one int64 array per rank, in order.

        If an image cannot be decoded, its own number is listed, not its substitute's number.
        """
        samples = self._train_order(epoch)[step * self._global_batch_size :][: self._global_batch_size]
        shares = [order.rank_slice(samples, rank=rank, **self._sizes) for rank in range(self._sizes["world_size"])]
        return [share["index"].astype(np.int64) for share in shares]

    def val_numbers(self) -> np.ndarray:
        """Return the numbers in the file of all ranks' validation images, in order: int64.

        If data.max_val_images limits their number, they are spread evenly over the file. Files are sorted by class, so
        the first images would have only a few classes.
        """
        chosen = self._images.chosen
        return chosen[np.arange(self._num_val_images, dtype=np.int64) * len(chosen) // self._num_val_images]

    def _val_samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Return this rank's validation samples and labels."""
        indices, is_real = order.val_share(self._num_val_images, rank=self._rank, world_size=self._sizes["world_size"])
        samples = np.zeros(len(indices), order.SAMPLE_DTYPE)
        samples["index"] = self.val_numbers()[indices]
        return samples, np.where(is_real, self._images.labels[samples["index"]], PADDING_LABEL)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"the loader of {self.path!r} is closed. Build a new one.")

    def _begin(self, samples: np.ndarray, labels: np.ndarray) -> MicroBatches:
        self._check_open()
        micro_batches = self._micro_batches(samples, labels)
        self._running.add(micro_batches)
        return micro_batches

    def _micro_batches(self, samples: np.ndarray, labels: np.ndarray) -> MicroBatches:
        copied = None
        first = 0
        with closing(self._images.decoded(samples)) as source:
            try:
                for images_BHWC, status_B in source:
                    chunk = slice(first, first + len(images_BHWC))
                    labels_B = labels[chunk].astype(np.int64)
                    self.num_skipped += handle_bad_images(
                        self._images,
                        samples[chunk],
                        images_BHWC,
                        labels_B,
                        status_B,
                        on_bad=self._data.on_bad,
                        is_train=self._is_train,
                    )
                    if self._copies:
                        on_device_BHWC, copied = self._copies.copy(images_BHWC)
                    else:
                        on_device_BHWC = self._memory.copy(images_BHWC)
                    images_BCHW = on_device_BHWC.permute(0, 3, 1, 2)
                    normalized_BCHW = images_BCHW if self._normalize is None else self._normalize(images_BCHW)
                    self.indices_B = samples["index"][chunk]
                    yield normalized_BCHW, send(labels_B, self._device)
                    # FFCV overwrites this micro-batch when the next is requested, so finish the copy first.
                    if copied is not None:
                        copied.synchronize()
                    first = chunk.stop
            finally:
                if copied is not None:
                    copied.synchronize()
