// How the work is laid out: 16 rows are turned (transposed) so that the 16 values of a column lie side by side. Blending
// along the rows is then the same operation as blending along the columns, sums of whole runs of bytes with one weight
// each, which any vector unit does well; the result is turned back. Turning costs a tenth of what it saves.
#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the transposition below is written for little-endian machines"
#endif

#define INLINE static inline __attribute__((always_inline))
// The same source compiled for several CPUs; the loader picks when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are only passed between functions that are inlined

namespace {

constexpr int WEIGHT_BITS = 22;
constexpr int BLOCK = 64;                  // bytes of a row that are turned together
constexpr int RUN = 3 * STRIP_ROWS;        // bytes that are blended together: a pixel of each row of a strip

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef int32_t Sums __attribute__((vector_size(64)));
typedef uint64_t Words __attribute__((vector_size(64)));

size_t whole_blocks(size_t bytes) { return (bytes + BLOCK - 1) / BLOCK * BLOCK; }

double filter_value(double x, int filter) {
  x = std::fabs(x);
  if (filter == BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
  constexpr double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

INLINE Sums widen(const uint8_t* p) {
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, Sums);
}

INLINE Bytes narrow(const Sums& exact) {
  const Sums black = {}, white = black + 255;
  Sums sums = exact >> WEIGHT_BITS;
  sums = sums < black ? black : sums;
  sums = sums > white ? white : sums;
  return __builtin_convertvector(sums, Bytes);
}

// out[i] = sum over k of weights[k] * in[k * stride + i], for the RUN values i.
INLINE void blend(uint8_t* out, const uint8_t* in, size_t stride, const int32_t* weights, int count) {
  const Sums half = Sums{} + (1 << (WEIGHT_BITS - 1));
  Sums a = half, b = half, c = half;
  for (int k = 0; k < count; k++, in += stride) {
    a += weights[k] * widen(in);
    b += weights[k] * widen(in + 16);
    c += weights[k] * widen(in + 32);
  }
  const Bytes done[3] = {narrow(a), narrow(b), narrow(c)};
  std::memcpy(out, done, sizeof done);
}

// Swap rows and columns of the 8 matrices of 8 x 8 bytes that 8 rows of 64 bytes make.
template <int STEP>
INLINE void swap_corners(Words (&rows)[8]) {
  constexpr uint64_t mask = ~uint64_t(0) / ((uint64_t(1) << (8 * STEP)) + 1);
  for (int i = 0; i < 8; i++) {
    if (i & STEP) continue;
    const Words swapped = ((rows[i] >> (8 * STEP)) ^ rows[i + STEP]) & mask;
    rows[i + STEP] ^= swapped;
    rows[i] ^= swapped << (8 * STEP);
  }
}

INLINE void transpose(Words (&rows)[8]) {
  swap_corners<1>(rows);
  swap_corners<2>(rows);
  swap_corners<4>(rows);
}

// [STRIP_ROWS, stride] -> [num_bytes, STRIP_ROWS]
INLINE void turn(uint8_t* out, const uint8_t* in, size_t stride, size_t num_bytes) {
  for (size_t x = 0; x < num_bytes; x += BLOCK) {
    for (int y = 0; y < STRIP_ROWS; y += 8) {
      Words rows[8];
      for (int i = 0; i < 8; i++) std::memcpy(&rows[i], in + (y + i) * stride + x, BLOCK);
      transpose(rows);
      for (int j = 0; j < 8; j++) {
        for (int i = 0; i < 8; i++) {
          const uint64_t column = rows[i][j];
          std::memcpy(out + (x + 8 * j + i) * STRIP_ROWS + y, &column, 8);
        }
      }
    }
  }
}

// [num_bytes, STRIP_ROWS] -> [STRIP_ROWS, stride]
INLINE void turn_back(uint8_t* out, const uint8_t* in, size_t stride, size_t num_bytes) {
  for (size_t x = 0; x < num_bytes; x += BLOCK) {
    for (int y = 0; y < STRIP_ROWS; y += 8) {
      Words rows[8];
      for (int i = 0; i < 8; i++) {
        uint64_t columns[8];
        for (int j = 0; j < 8; j++) std::memcpy(&columns[j], in + (x + 8 * j + i) * STRIP_ROWS + y, 8);
        rows[i] = Words{columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], columns[6], columns[7]};
      }
      transpose(rows);
      for (int i = 0; i < 8; i++) std::memcpy(out + (y + i) * stride + x, &rows[i], BLOCK);
    }
  }
}

struct Strip {
  const uint8_t* pixels;
  size_t stride;
  uint8_t *turned, *resized, *out;
  size_t out_stride;
  int size;
  bool flip;
};

// Resize the 16 rows of a strip in width.
INLINE void resize_across(const Strip& s, const Axis& axis) {
  turn(s.turned, s.pixels, s.stride, 3 * size_t(axis.end - axis.begin));
  for (int x = 0; x < s.size; x++) {
    uint8_t* pixel = s.resized + size_t(s.flip ? s.size - 1 - x : x) * RUN;
    blend(pixel, s.turned + size_t(axis.first[x]) * RUN, RUN, &axis.weights[size_t(x) * axis.max_count], axis.count[x]);
  }
  turn_back(s.out, s.resized, s.out_stride, 3 * size_t(s.size));
}

// Make one row of the result out of `count` rows.
INLINE void blend_rows(uint8_t* out, const uint8_t* rows, size_t stride, const int32_t* weights, int count, int bytes) {
  int x = 0;
  for (; x + RUN <= bytes; x += RUN) blend(out + x, rows + x, stride, weights, count);
  if (x == bytes) return;
  uint8_t rest[RUN];
  blend(rest, rows + x, stride, weights, count);
  std::memcpy(out + x, rest, bytes - x);
}

FOR_EACH_CPU void resize_across_fast(const Strip& s, const Axis& axis) { resize_across(s, axis); }
void resize_across_plain(const Strip& s, const Axis& axis) { resize_across(s, axis); }

FOR_EACH_CPU void blend_rows_fast(uint8_t* out, const uint8_t* rows, size_t stride, const int32_t* weights, int count,
                                  int bytes) {
  blend_rows(out, rows, stride, weights, count, bytes);
}
void blend_rows_plain(uint8_t* out, const uint8_t* rows, size_t stride, const int32_t* weights, int count, int bytes) {
  blend_rows(out, rows, stride, weights, count, bytes);
}

}  // namespace

// Pillow's precompute_coeffs and normalize_coeffs_8bpc, for the pixels of the window alone.
void Axis::plan(int length, int resized, int window, int size, int filter) {
  const double scale = double(length) / resized, shrink = scale < 1.0 ? 1.0 : scale;
  const double support = (filter == BICUBIC ? 2.0 : 1.0) * shrink, per_pixel = 1.0 / shrink;
  max_count = int(std::min(std::ceil(support) * 2 + 1, double(length)));
  first.resize(size);
  count.resize(size);
  weights.resize(size_t(size) * max_count);
  std::vector<double> exact(max_count);
  for (int i = 0; i < size; i++) {
    const double centre = (window + i + 0.5) * scale;
    first[i] = std::max(0, int(centre - support + 0.5));
    count[i] = std::min(length, int(centre + support + 0.5)) - first[i];
    double sum = 0.0;
    for (int k = 0; k < count[i]; k++) sum += exact[k] = filter_value((k + first[i] - centre + 0.5) * per_pixel, filter);
    for (int k = 0; k < count[i]; k++) {
      const double weight = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << WEIGHT_BITS);
      weights[size_t(i) * max_count + k] = int32_t(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
  }
  begin = first[0];
  end = first[size - 1] + count[size - 1];
  for (int& f : first) f -= begin;
}

void Resizer::plan(const CropRow& row, int size) {
  size_ = size;
  flip_ = row.flip;
  across.plan(row.width, row.resized_width, row.window_left, size, row.filter);
  down.plan(row.height, row.resized_height, row.window_top, size, row.filter);
}

void Resizer::open(size_t stride, size_t skip, uint8_t* image) {
  stride_ = stride;
  skip_ = skip;
  image_ = image;
  num_kept_ = first_kept_ = next_ = 0;
  const size_t in_bytes = whole_blocks(3 * size_t(across.end - across.begin));
  kept_stride_ = whole_blocks(3 * size_t(size_));
  strip_.resize(STRIP_ROWS * stride + BLOCK);
  turned_.resize(STRIP_ROWS * in_bytes);
  resized_.resize(STRIP_ROWS * kept_stride_);
  kept_.resize(kept_stride_ * (down.max_count + STRIP_ROWS) + RUN);
}

// Rows that were resized in width wait in kept_ until all rows that make the next row of the image are there.
void Resizer::push(int num_rows) {
  const Strip strip = {strip_.data() + skip_, stride_, turned_.data(), resized_.data(),
                       kept_.data() + num_kept_ * kept_stride_, kept_stride_, size_, flip_};
  (plain_ ? resize_across_plain : resize_across_fast)(strip, across);
  num_kept_ += num_rows;
  for (; next_ < size_ && down.first[next_] + down.count[next_] <= first_kept_ + num_kept_; next_++) {
    (plain_ ? blend_rows_plain : blend_rows_fast)(
        image_ + size_t(next_) * size_ * 3, kept_.data() + (down.first[next_] - first_kept_) * kept_stride_,
        kept_stride_, &down.weights[size_t(next_) * down.max_count], down.count[next_], size_ * 3);
  }
  if (next_ == size_) return;
  const int num_done = std::min(down.first[next_] - first_kept_, num_kept_);
  num_kept_ -= num_done;
  first_kept_ += num_done;
  std::memmove(kept_.data(), kept_.data() + num_done * kept_stride_, num_kept_ * kept_stride_);
}
