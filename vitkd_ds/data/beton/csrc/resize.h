// Pillow's resize of RGB images, bit for bit, strip by strip, so that memory is bounded by a few rows of the crop.
//
// Pillow (src/libImaging/Resample.c) resizes in width, rounds to 8 bits, then in height. From version 13 on the height
// comes first where it shrinks by more than twice as many pixels as the width; so it does here. Weights are 22-bit
// fixed point and sums 32-bit integers, which are exact: the order of a sum is of no matter, and every CPU gives the
// same bits. What differs from Pillow is only the order of the work, see resize.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "decode.h"

constexpr int STRIP_ROWS = 64;  // rows that are resized together

struct Weights;

// One direction of a resize: which pixels of the box, with which weights, make each pixel of the window.
struct Axis {
  int begin = 0, end = 0;             // the pixels of the box that the window needs
  int places = 0;                     // for the weights of one: at least as many as pixels make it, an even number
  std::vector<int32_t> first, count;  // per pixel of the window; first is counted from `begin`
  std::vector<int32_t> weights;       // [window, places], 2**22 is one
  std::vector<int32_t> pairs;         // [window, places], the same for wide vectors, see blend.h

  Weights weights_of(int pixel) const;
  void plan(int length, int resized, int window, int size, int filter);
};

struct Strip;
struct Column;

// Bytes of the widest vectors of this CPU that there is code for: 16, 32 or 64.
int widest_vector();

// Resizes one image at a time; the buffers stay for the next.
//
//   resizer.plan(row, size);            // now across.begin .. down.end say which pixels of the box are needed
//   resizer.open(stride, skip, image);  // a row of the strip has `stride` bytes, the first needed pixel at byte `skip`
//   for each 64 rows down.begin .. down.end: fill resizer.strip(0) .. strip(63); resizer.push(num_filled);
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
  int num_kept_ = 0, first_kept_ = 0;  // rows in kept_, and the number of the first of them
  int next_ = 0;                       // row of the image to be made next
  size_t stride_ = 0, skip_ = 0, kept_bytes_ = 0, kept_stride_ = 0;
  uint8_t* image_ = nullptr;
  std::vector<uint8_t> strip_, turned_, resized_, kept_, lowered_, done_;
};
