// Resize RGB images as Pillow does, bit for bit. Only a few rows of the crop are in memory at a time.
//
// Pillow (src/libImaging/Resample.c) resizes the width, rounds to 8 bits, and then resizes the height. Since version
// 13, Pillow resizes the height first if the height shrinks by more than twice as many pixels as the width. This
// code does the same. Weights are 22-bit fixed-point numbers and sums are 32-bit integers. Sums are therefore exact
// in any order, and every CPU gives the same bits. Only the order of the work differs from Pillow, see resize.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "decode.h"

constexpr int STRIP_ROWS = 64;  // rows resized together

struct Weights;

// Resize along one axis: for each output pixel of the window, the input pixels of the box and their weights.
struct Axis {
  int begin = 0, end = 0;             // range of input pixels that the window needs
  int places = 0;                     // weights reserved per output pixel: the maximum count, rounded up to even
  std::vector<int32_t> first, count;  // input pixels per output pixel; `first` is relative to `begin`
  std::vector<int32_t> weights;       // [window, places], 2**22 represents 1.0
  std::vector<int32_t> pairs;         // [window, places], the weights for wide vectors, see blend.h

  Weights weights_of(int pixel) const;
  void plan(int length, int resized, int window, int size, int filter);
};

struct Strip;
struct Column;

// Return the widest vectors that both this CPU and this code support, in bytes: 16, 32 or 64.
int widest_vector();

// Resizes one image at a time; reuses its buffers.
//
//   resizer.plan(row, size);            // sets the needed ranges of the box: across.begin/end and down.begin/end
//   resizer.open(stride, skip, image);  // a strip's row has `stride` bytes, with the first needed pixel at byte `skip`
//   for each 64 rows from down.begin to down.end: fill resizer.strip(0) to strip(63); resizer.push(num_filled);
class Resizer {
 public:
  explicit Resizer(int vector_bytes = widest_vector());
  void plan(const CropRow& row, int size);
  void open(size_t stride, size_t skip, uint8_t* image);
  uint8_t* strip(int row) { return strip_.data() + row * stride_; }
  void push(int num_rows);

  Axis across, down;

 private:
  void resize_width(const uint8_t* in, size_t in_stride, uint8_t* out);
  void make_row();

  void (*across_kernel_)(const Strip&, const Axis&);
  void (*down_kernel_)(const Column&, const Weights& weights);
  bool flip_ = false, down_first_ = false;
  int size_ = 0;
  int num_kept_ = 0, first_kept_ = 0;  // number of rows in kept_, and index of the first one
  int next_ = 0;                       // next output row
  size_t stride_ = 0, skip_ = 0, kept_bytes_ = 0, kept_stride_ = 0;
  uint8_t* image_ = nullptr;
  std::vector<uint8_t> strip_, turned_, resized_, kept_, lowered_, done_;
};
