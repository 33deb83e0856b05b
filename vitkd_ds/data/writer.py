"""FFCV's writer with an end in every case: done, or an error in the parent, with the workers gone.

FFCV forks workers and then waits until they have written all samples, so a worker that raises or is killed leaves the
parent waiting for ever; and it fixes the number of samples before it has seen any. Here the parent hears from the
workers through a queue and looks at their exit codes, and a file that does not decode is reported and left out of the
tables in the end. FFCV's pages, fields and file layout stay as they are.
"""

import multiprocessing
import os
import queue
import traceback
from dataclasses import dataclass

import cv2
import numpy as np
from tqdm import tqdm

from vitkd_ds.data.backend import ALLOC_TABLE_TYPE, DatasetWriter, MemoryAllocator, handle_sample
from vitkd_ds.data.images import ImageFolder, load_rgb

CHUNK = 32
"""Images a worker takes at a time."""
POLL_S = 0.5
"""How often the parent looks for dead workers while none reports."""


@dataclass(frozen=True)
class Written:
    """What a finished file holds."""

    num_images: int
    max_height: int
    max_width: int
    bad: tuple[tuple[str, str], ...]
    """Path and reason of each file that was left out."""


class BetonWriter(DatasetWriter):
    """Writes an ImageFolder; `DatasetWriter` of FFCV otherwise. Needs the fork start method, as FFCV's does."""

    def write(self, folder: ImageFolder, *, skip_bad: bool) -> Written:
        """Write all images to `self.fname`.

        Raises:
            ValueError: a file cannot be decoded and `skip_bad` is off, or no file can.
            RuntimeError: a worker failed or was killed.
        """
        self.num_samples = len(folder.paths)
        self.prepare()
        fork = multiprocessing.get_context("fork")
        results, taken = fork.Queue(), fork.Value("Q", 0)
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        cv2_threads = cv2.getNumThreads()
        cv2.setNumThreads(0)  # its thread pool does not survive a fork
        workers = [
            fork.Process(target=self._work, args=(folder, taken, results, allocator, os.getpid()), daemon=True)
            for _ in range(self.num_workers)
        ]
        try:
            for worker in workers:
                worker.start()
            bad, allocations = self._collect(folder, workers, results, skip_bad=skip_bad)
            return self._finish(folder, bad, allocations)
        finally:
            for worker in workers:
                if worker.pid is not None:
                    worker.kill()
                    worker.join()
            cv2.setNumThreads(cv2_threads)
            self.metadata_sm.close()
            self.metadata_sm.unlink()

    def _work(self, folder: ImageFolder, taken, results, allocator: MemoryAllocator, parent: int) -> None:
        """In a worker: write chunks until none is left. Never raises; reports instead."""
        try:
            # Not as a `with`: leaving it on an error waits for the pages of other workers before anything is reported.
            allocator.__enter__()
            while os.getppid() == parent:
                with taken.get_lock():
                    chunk = range(self.num_samples)[taken.value : taken.value + CHUNK]
                    taken.value += CHUNK
                if not chunk:
                    break
                results.put(("done", (len(chunk), self._write_chunk(folder, chunk, allocator))))
            allocator.__exit__(None, None, None)
            results.put(("finished", allocator.allocations))
        except BaseException:  # FFCV's parent would wait for ever
            results.put(("failed", traceback.format_exc()))

    def _write_chunk(self, folder: ImageFolder, chunk: range, allocator: MemoryAllocator) -> list[tuple[int, str]]:
        """Write the images of a chunk; returns number and reason of those that do not decode."""
        metadata = np.frombuffer(self.metadata_sm.buf, dtype=self.metadata_type, count=self.num_samples)
        bad = []
        for index in chunk:
            image, reason = self._load(folder.paths[index])
            if reason:
                bad.append((index, reason))
                continue
            np.random.seed(index)  # which images of write_mode "proportion" become JPEG: the same in every run
            sample = (image, folder.labels[index])
            try:
                handle_sample(sample, index, metadata.dtype.names, metadata, allocator, self.fields)
            except Exception as error:
                raise RuntimeError(f"{folder.paths[index]!r} could not be written: {error}") from error
        return bad

    def _load(self, path: str) -> tuple[np.ndarray | None, str]:
        """The image and "", or None and why it cannot be used."""
        try:
            image = load_rgb(path)
        except Exception as error:  # Pillow's plugins raise whatever comes: OSError, SyntaxError, struct.error, ...
            return None, f"{type(error).__name__}: {error}"
        longest, shortest = max(image.shape[:2]), min(image.shape[:2])
        limit = self.fields["image"].max_resolution
        if limit is not None and int(limit / longest * shortest) < 1:
            return None, f"{shortest} x {longest} pixels leave none when the longer side is scaled to {limit}"
        if limit is None and longest > 65535:
            return None, f"its longer side of {longest} pixels is above 65535, the format's limit"
        return image, ""

    def _collect(self, folder: ImageFolder, workers: list, results, *, skip_bad: bool) -> tuple[list, list]:
        """In the parent: follow the workers to their end."""
        bad, allocations, num_finished = [], [], 0
        with tqdm(total=self.num_samples, unit="img", desc="packing", disable=None) as progress:
            while num_finished < len(workers):
                try:
                    kind, content = results.get(timeout=POLL_S)
                except queue.Empty:
                    dead = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
                    if dead:
                        raise RuntimeError(
                            f"a packing worker was ended from outside (exit code {dead[0]}; -9 is often "
                            f"a lack of memory): run again, with fewer workers"
                        ) from None
                    continue
                if kind == "failed":
                    raise RuntimeError(f"a packing worker failed:\n{content}")
                if kind == "finished":
                    num_finished, allocations = num_finished + 1, allocations + content
                    continue
                progress.update(content[0])
                bad += content[1]
                if bad and not skip_bad:
                    index, reason = bad[0]
                    raise ValueError(
                        f"every image must decode, but {folder.paths[index]!r} does not ({reason}): repair or remove "
                        f"it, or set skip_bad to leave such files out"
                    )
        return bad, allocations

    def _finish(self, folder: ImageFolder, bad: list, allocations: list) -> Written:
        """Close the gaps that bad files left in the tables, and write tables and header."""
        is_kept = np.ones(self.num_samples, bool)
        is_kept[[index for index, _ in bad]] = False
        if not is_kept.any():
            raise ValueError(
                f"at least one image must decode, found none in {len(folder.paths)} files, the first is "
                f"{folder.paths[0]!r} ({bad[0][1]}): give a folder of images"
            )
        metadata = np.frombuffer(self.metadata_sm.buf, dtype=self.metadata_type, count=self.num_samples)[is_kept]
        table = np.array(allocations, dtype=np.uint64).reshape(-1, 3)
        table[:, 0] = (np.cumsum(is_kept) - 1)[table[:, 0].astype(np.int64)]
        with open(self.fname, "r+b") as file:
            file.seek(self.metadata_start)
            file.write(metadata.tobytes())
            end = file.seek(0, os.SEEK_END)
            # A full disk may cut a page short without an error, and all later pages would be out of place.
            if len(table) != len(metadata) or end % self.page_size or int((table[:, 1] + table[:, 2]).max()) > end:
                raise RuntimeError(
                    f"{self.fname!r} must hold {len(metadata)} images in whole pages of {self.page_size} bytes, found "
                    f"{len(table)} and {end} bytes: is the disk full?"
                )
            file.write(table.astype("<u8").view(ALLOC_TABLE_TYPE).tobytes())
            self.header["num_samples"], self.header["alloc_table_ptr"] = len(metadata), end
            file.seek(0)
            file.write(self.header.tobytes())
            file.flush()
            os.fsync(file.fileno())
        images = metadata["f0"]
        named = tuple((folder.paths[index], reason) for index, reason in sorted(bad))
        return Written(len(metadata), int(images["height"].max()), int(images["width"].max()), named)
