// The images of a micro-batch: stored bytes in, square RGB images out. The C side of vitkd_ds/data/beton/decode.py.
//
// Plain C functions, called through ctypes. None throws, prints, or keeps anything between calls.
#pragma once

#include <cstdint>

#include "augment.h"

// What became of an image; the same numbers as in decode.py.
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
enum Filter : int32_t { BILINEAR = 0, BICUBIC = 1 };      // as in crops.py
constexpr int32_t MAX_RESIZED = 1 << 28;                  // side of a whole resized image, in pixels
constexpr int32_t MAX_SIZE = 4096;                        // of the square that is made, in pixels

// One image of a micro-batch: CROP_DTYPE of crops.py, where the fields are explained.
struct CropRow {
  int32_t index, repeat, flip, filter;
  int32_t top, left, height, width;
  int32_t resized_height, resized_width, window_top, window_left;
};
static_assert(sizeof(CropRow) == 48, "CROP_DTYPE has 12 fields of 4 bytes");

// One image of the file: STORED_DTYPE of format.py.
struct StoredImage {
  uint64_t offset;
  uint32_t size, crc32;
  uint16_t height, width;
  uint8_t mode, has_crc, checked, thorough;
};
static_assert(sizeof(StoredImage) == 24, "STORED_DTYPE has 24 bytes");

extern "C" {

// Decode num_rows images into images [num_rows, size, size, 3] and their Status into status [num_rows]. An image that
// is not DECODED is black. With a plan, which may be null, those that are DECODED are augmented. Sets `checked` of each
// image whose CRC-32 matched. vector_bytes is 16, 32 or 64, at most what the CPU has, or 0 for the widest; makes no
// difference to the result. Returns 0, or -1 if an argument is out of range and nothing was done. May be called by
// several threads at once, on the same file and table.
int vitkd_decode(int fd, StoredImage* table, int64_t num_images, const CropRow* rows, int64_t num_rows, int32_t size,
                 int32_t num_threads, const AugmentPlan* plan, uint8_t* images, int32_t* status, int32_t vector_bytes);

// Read the images of these numbers with num_threads threads and forget them, so that the system keeps their bytes at hand;
// seconds [num_indices] is how long each took. Returns 0, or -1 if an argument is out of range and nothing was done.
int vitkd_read_ahead(int fd, const StoredImage* table, int64_t num_images, const int64_t* indices, int64_t num_indices,
                     int32_t num_threads, double* seconds);

// Resize pixels [height, width, 3] as `row` says, with the code for vectors of vector_bytes, which gives the same bits
// for each; for tests. Returns a Status.
int vitkd_resize(const uint8_t* pixels, int32_t height, int32_t width, const CropRow* row, int32_t size,
                 int32_t vector_bytes, uint8_t* image);

// Write the JPEG once more, with the same coefficients, as one baseline scan with restart markers and Huffman tables of
// its own; what else a file may hold (EXIF, colour profile) is left out. Returns the number of bytes, or 0 if it is
// damaged, of a kind that has no such form, or takes more than `capacity` bytes.
uint64_t vitkd_transcode(const uint8_t* jpeg, uint64_t size, uint8_t* written, uint64_t capacity);

// MCUs between two restart markers of a JPEG of this width whose MCUs are mcu_width pixels wide: they divide its rows,
// as cropping by segments needs it.
int32_t vitkd_restart_interval(int32_t width, int32_t mcu_width);

// The widest vectors this CPU has, in bytes: 16, 32 or 64.
int vitkd_widest_vector();
}
