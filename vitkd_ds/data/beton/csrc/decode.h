// Decoder of a micro-batch, from stored bytes to square RGB images; the C side of vitkd_ds/data/beton/decode.py.
//
// Plain C functions for ctypes. They throw no exceptions, print nothing and keep no state between calls.
#pragma once

#include <cstdint>

#include "augment.h"

// Result for an image; same numbers as in decode.py.
enum Status : int32_t {
  DECODED = 0,
  BAD_JPEG = 1,
  BAD_SIZE = 2,
  SHORT_READ = 3,
  BAD_CRC = 4,
  BAD_COLOURS = 5,
  BAD_ROW = 6,
  NO_MEMORY = 7,
  MISSING_SCANS = 8,
  UNKNOWN_KIND = 9,
};

enum Mode : uint8_t { MODE_JPG = 0, MODE_RAW = 1 };       // FFCV's IMAGE_MODES
enum Filter : int32_t { BILINEAR = 0, BICUBIC = 1 };      // same as in crops.py
constexpr int32_t MAX_RESIZED = 1 << 28;                  // maximum side of a whole resized image, in pixels
constexpr int32_t MAX_SIZE = 4096;                        // maximum side of an output image, in pixels

// Crop of one image of a micro-batch. CROP_DTYPE of crops.py explains the fields.
struct CropRow {
  int32_t index, repeat, flip, filter;
  int32_t top, left, height, width;
  int32_t resized_height, resized_width, window_top, window_left;
};
static_assert(sizeof(CropRow) == 48, "CROP_DTYPE has 12 fields of 4 bytes");

// Image stored in the file: STORED_DTYPE of format.py.
struct StoredImage {
  uint64_t offset;
  uint32_t size, crc32;
  uint16_t height, width;
  uint8_t mode, has_crc, checked, thorough;
};
static_assert(sizeof(StoredImage) == 24, "STORED_DTYPE has 24 bytes");

extern "C" {

// Decode num_rows images into images [num_rows, size, size, 3], and write their Status to status [num_rows]. Images
// that cannot be decoded become black. The other images are augmented with `plan`, unless it is null. If the CRC-32 of
// an image matches, its `checked` is set to 1 in the table. vector_bytes selects the width of vectors, which does not
// affect the result: 16, 32 or 64, if the CPU supports it, or 0 for the CPU's maximum. Return 0 on success. If an
// argument is out of range, return -1 without doing anything. Several threads may call this function at the same time
// on the same file and table.
int vitkd_decode(int fd, StoredImage* table, int64_t num_images, const CropRow* rows, int64_t num_rows, int32_t size,
                 int32_t num_threads, const AugmentPlan* plan, uint8_t* images, int32_t* status, int32_t vector_bytes);

// Read the images at `indices` with num_threads threads and discard the bytes, which brings them into the page cache.
// Write the duration of each read to seconds [num_indices]. Return 0, or -1 without reading anything if an argument
// is out of range.
int vitkd_read_ahead(int fd, const StoredImage* table, int64_t num_images, const int64_t* indices, int64_t num_indices,
                     int32_t num_threads, double* seconds);

// Crop and resize pixels [height, width, 3] as described by `row`, with the code for vectors of vector_bytes bytes. All
// values of vector_bytes give the same bits. Used by tests. Return a Status.
int vitkd_resize(const uint8_t* pixels, int32_t height, int32_t width, const CropRow* row, int32_t size,
                 int32_t vector_bytes, uint8_t* image);

// Re-encode a JPEG losslessly, with the same coefficients, as one baseline scan with restart markers and optimised
// Huffman tables. Metadata (EXIF, colour profile) is dropped. Return the number of bytes written, or 0 if the JPEG is
// damaged, cannot be written as a baseline JPEG, or needs more than `capacity` bytes.
uint64_t vitkd_transcode(const uint8_t* jpeg, uint64_t size, uint8_t* written, uint64_t capacity);

// Return the restart interval, in MCUs, for a JPEG that is `width` pixels wide and has MCUs that are mcu_width pixels
// wide. The interval divides the number of MCUs in a row, as splice.h requires.
int32_t vitkd_restart_interval(int32_t width, int32_t mcu_width);

// Return the width of this CPU's vectors, in bytes: 16, 32 or 64.
int vitkd_widest_vector();
}
