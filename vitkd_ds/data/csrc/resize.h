// Pillow's resize of RGB images, bit for bit, in strips of rows, so that memory is bounded by the crop's width.
//
// Pillow (src/libImaging/Resample.c) blends pixels along the rows first, rounds to 8 bits, then blends along the
// columns; weights are 22-bit fixed point and sums are 32-bit integers, so the order of the sum is of no matter and
// every CPU gives the same bits. What differs here is only the order of the work: see resize.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "decode.h"

constexpr int STRIP_ROWS = 16;  // rows that are resized together

// One direction of a resize: which pixels of the box, with which weights, make each pixel of the window.
struct Axis {
  int begin = 0, end = 0;               // the pixels of the box that any pixel of the window needs
  int max_count = 0;                    // most pixels that make one
  std::vector<int32_t> first, count;    // per pixel of the window: first is counted from `begin`
  std::vector<int32_t> weights;         // [window, max_count], 2**22 is one

  void plan(int length, int resized, int window, int size, int filter);
};

// Resizes one image at a time; the buffers stay for the next.
//
//   resizer.plan(row, size);            // now across.begin .. down.end say which pixels of the box are needed
//   resizer.open(stride, skip, image);  // a row of the strip has `stride` bytes, the first needed pixel at byte `skip`
//   for each 16 rows down.begin .. down.end: fill resizer.strip(0) .. strip(15); resizer.push(num_filled);
class Resizer {
 public:
  explicit Resizer(bool plain = false) : plain_(plain) {}
  void plan(const CropRow& row, int size);
  void open(size_t stride, size_t skip, uint8_t* image);
  uint8_t* strip(int row) { return strip_.data() + row * stride_; }
  void push(int num_rows);

  Axis across, down;

 private:
  const bool plain_;
  bool flip_ = false;
  int size_ = 0, num_kept_ = 0, first_kept_ = 0, next_ = 0;
  size_t stride_ = 0, skip_ = 0, kept_stride_ = 0;
  uint8_t* image_ = nullptr;
  std::vector<uint8_t> strip_, turned_, resized_, kept_;
};
