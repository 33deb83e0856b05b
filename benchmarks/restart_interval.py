"""Measure how fast random crops are decoded on one core, for several intervals between restart markers.

    python benchmarks/restart_interval.py --photos FILE [--rounds 3] [--crops 5000]

FILE is the same as for `loader.py`. The photos are scaled and encoded as by `vitkd-ds pack`, except for the restart
markers. The table has a row without markers, as stock FFCV encodes; a row without markers but with optimised Huffman
tables; and a row for each interval. An interval must divide a row of MCUs (blocks of 16 px width) of the image, so the
divisor that is closest to the given number is used. All rows decode the same training crops (area 0.08 to 1, resized to
224 px), and all rows run once in each round. The table shows the median images per CPU-second of one thread, and their
ratio to the first row.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vitkd_ds.commands.pack.encode import MCU_PIXELS  # noqa: E402
from vitkd_ds.data.beton.decode import Decoder  # noqa: E402
from vitkd_ds.data.beton.format import STORED_DTYPE  # noqa: E402
from vitkd_ds.data.crops import TrainCrops  # noqa: E402
from vitkd_ds.data.image_file import load_rgb  # noqa: E402
from vitkd_ds.data.order import SAMPLE_DTYPE  # noqa: E402

SIZE, BATCH = 224, 64
MCUS = (1, 2, 3, 4, 6, 8, math.inf)


def encoded(photo: np.ndarray, *, optimise: bool, mcus: float) -> bytes:
    """Encode a JPEG of quality 90 with the interval closest to `mcus` that divides a row of MCUs (0: no markers)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_OPTIMIZE, int(optimise)]
    if mcus:
        in_row = -(-photo.shape[1] // MCU_PIXELS)
        divisors = [number for number in range(1, in_row + 1) if in_row % number == 0]
        nearest = min(divisors, key=lambda number: abs(math.log(number / min(mcus, in_row))))
        options += [cv2.IMWRITE_JPEG_RST_INTERVAL, nearest]
    return cv2.imencode(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def stored(files: list[bytes], sizes: list[tuple[int, int]], path: Path) -> Decoder:
    """Write the JPEG files to `path`, one after another, and return a decoder for them."""
    path.write_bytes(b"".join(files))
    table = np.zeros(len(files), STORED_DTYPE)
    table["size"] = [len(file) for file in files]
    table["offset"] = np.cumsum(table["size"]) - table["size"]
    table["height"], table["width"] = np.array(sizes).T
    table["crc32"], table["has_crc"] = [zlib.crc32(file) for file in files], 1
    return Decoder(path, table)


def images_per_s(decoder: Decoder, rows: np.ndarray) -> tuple[float, int]:
    """Return the images per CPU-second, and a checksum of some pixels; it must be the same for all encodings."""
    images, status, seen = np.zeros((BATCH, SIZE, SIZE, 3), np.uint8), np.zeros(BATCH, np.int32), 0
    start = time.process_time()
    for first in range(0, len(rows) - BATCH + 1, BATCH):
        decoder.decode(rows[first : first + BATCH], images, status, num_threads=1)
        assert not status.any(), status
        seen = zlib.crc32(images[:4], seen)
    return len(rows) // BATCH * BATCH / (time.process_time() - start), seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=5000)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with np.load(args.photos) as file:
        blob, ends = file["blob"], file["offsets"]
    photos = []
    for first, end in zip(ends, ends[1:]):
        pixels = load_rgb(blob[first:end].tobytes())
        ratio = min(1.0, 500 / max(pixels.shape[:2]))
        photos.append(
            cv2.resize(pixels, [int(ratio * side) for side in pixels.shape[1::-1]], interpolation=cv2.INTER_AREA)
        )
    sizes = [photo.shape[:2] for photo in photos]
    samples = np.zeros(args.crops, SAMPLE_DTYPE)
    samples["index"] = np.random.default_rng(0).permutation(np.arange(args.crops) % len(photos))
    samples["repeat"] = np.arange(args.crops) // len(photos)
    crops = TrainCrops(0, SIZE, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, "bicubic")
    rows = crops.rows(samples, *np.array(sizes).T[:, samples["index"]])
    kinds = {"as stock FFCV encodes": (False, 0), "optimised tables": (True, 0)}
    kinds |= {"a row" if mcus == math.inf else f"{mcus} MCUs": (True, mcus) for mcus in MCUS}
    with tempfile.TemporaryDirectory() as folder:
        decoders, speeds, seen = {}, {name: [] for name in kinds}, set()
        for name, (optimise, mcus) in kinds.items():
            files = [encoded(photo, optimise=optimise, mcus=mcus) for photo in photos]
            decoders[name] = stored(files, sizes, Path(folder, f"{len(decoders)}.bin"))
        for name in [*kinds] * (1 + args.rounds):  # the first round warms up
            speed, pixels = images_per_s(decoders[name], rows)
            speeds[name].append(speed)
            seen.add(pixels)
    assert len(seen) == 1, "the encodings have different pixels"
    print("| file | bytes/image | images per CPU-second | ratio |\n|---|---|---|---|")
    first = statistics.median(speeds["as stock FFCV encodes"][1:])
    for name, (_, *measured) in speeds.items():
        speed, size = statistics.median(measured), decoders[name].table["size"].mean()
        print(f"| {name} | {size:,.0f} | {speed:,.0f} | {speed / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
