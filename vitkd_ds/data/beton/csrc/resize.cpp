// Strips of 64 rows are transposed, so that the 64 values of a column are contiguous. Resizing the width is then the
// same operation as resizing the height: a weighted sum of sequences of contiguous bytes, with one weight for each
// sequence. Vector units compute such sums fast. The result is transposed back.
#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "blend.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the transposition below needs a little-endian machine"
#endif

struct Strip {  // 64 input rows, buffers and output
  const uint8_t* in;
  size_t in_stride;
  uint8_t *turned, *resized, *out;
  size_t out_stride;
  int size;
  bool flip;
};

struct Column {  // consecutive input rows and the output row
  uint8_t* out;
  const uint8_t* in;
  size_t stride, num_bytes;
};

namespace {

constexpr int BLOCK = 64;              // rows are padded to multiples of the widest vector, in bytes
constexpr int PIXEL = 3 * STRIP_ROWS;  // bytes of a pixel column after transposition

size_t whole_blocks(size_t bytes) { return (bytes + BLOCK - 1) / BLOCK * BLOCK; }

double filter_value(double x, int filter) {
  x = std::fabs(x);
  if (filter == BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
  constexpr double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

template <int BYTES>
INLINE void blend(uint8_t* out, const uint8_t* in, size_t stride, const Weights& weights) {
#ifdef HAS_BLEND_PAIRS
  if constexpr (BYTES > 16) return blend_pairs<BYTES>(out, in, stride, weights);
#endif
  blend_anywhere<BYTES>(out, in, stride, weights);
}

// One step of transposing the 8 x 8 byte matrices in 8 rows of words.
template <int STEP, typename Words>
INLINE void swap_corners(Words (&rows)[8]) {
  constexpr uint64_t mask = ~uint64_t(0) / ((uint64_t(1) << (8 * STEP)) + 1);
  for (int i = 0; i < 8; i++) {
    if (i & STEP) continue;
    const Words swapped = ((rows[i] >> (8 * STEP)) ^ rows[i + STEP]) & mask;
    rows[i + STEP] ^= swapped;
    rows[i] ^= swapped << (8 * STEP);
  }
}

template <typename Words>
INLINE void transpose(Words (&rows)[8]) {
  swap_corners<1>(rows);
  swap_corners<2>(rows);
  swap_corners<4>(rows);
}

// [STRIP_ROWS, stride] -> [num_bytes, STRIP_ROWS]
template <int BYTES>
INLINE void turn(uint8_t* out, const uint8_t* in, size_t stride, size_t num_bytes) {
  for (size_t x = 0; x < num_bytes; x += BYTES) {
    for (int y = 0; y < STRIP_ROWS; y += 8) {
      typename Vector<BYTES>::Words rows[8];
      for (int i = 0; i < 8; i++) std::memcpy(&rows[i], in + (y + i) * stride + x, BYTES);
      transpose(rows);
      for (int j = 0; j < BYTES / 8; j++) {
        for (int i = 0; i < 8; i++) {
          const uint64_t column = rows[i][j];
          std::memcpy(out + (x + 8 * j + i) * STRIP_ROWS + y, &column, 8);
        }
      }
    }
  }
}

// [num_bytes, STRIP_ROWS] -> [STRIP_ROWS, stride]
template <int BYTES>
INLINE void turn_back(uint8_t* out, const uint8_t* in, size_t stride, size_t num_bytes) {
  for (size_t x = 0; x < num_bytes; x += BYTES) {
    for (int y = 0; y < STRIP_ROWS; y += 8) {
      typename Vector<BYTES>::Words rows[8];
      for (int i = 0; i < 8; i++) {
        uint64_t columns[BYTES / 8];
        for (int j = 0; j < BYTES / 8; j++) std::memcpy(&columns[j], in + (x + 8 * j + i) * STRIP_ROWS + y, 8);
        std::memcpy(&rows[i], columns, BYTES);
      }
      transpose(rows);
      for (int i = 0; i < 8; i++) std::memcpy(out + (y + i) * stride + x, &rows[i], BYTES);
    }
  }
}

// Resize the width of a strip of 64 rows.
template <int BYTES>
INLINE void resize_across(const Strip& s, const Axis& axis) {
  turn<BYTES>(s.turned, s.in, s.in_stride, 3 * size_t(axis.end - axis.begin));
  for (int x = 0; x < s.size; x++) {
    uint8_t* pixel = s.resized + size_t(s.flip ? s.size - 1 - x : x) * PIXEL;
    const uint8_t* pixels = s.turned + size_t(axis.first[x]) * PIXEL;
    const Weights weights = axis.weights_of(x);
    for (int i = 0; i < PIXEL; i += BYTES) blend<BYTES>(pixel + i, pixels + i, PIXEL, weights);
  }
  turn_back<BYTES>(s.out, s.resized, s.out_stride, 3 * size_t(s.size));
}

// Blend several rows into one.
template <int BYTES>
INLINE void resize_down(const Column& c, const Weights& weights) {
  size_t x = 0;
  for (; x + BYTES <= c.num_bytes; x += BYTES) blend<BYTES>(c.out + x, c.in + x, c.stride, weights);
  if (x == c.num_bytes) return;
  uint8_t rest[BYTES];
  blend<BYTES>(rest, c.in + x, c.stride, weights);
  std::memcpy(c.out + x, rest, c.num_bytes - x);
}

// The same code compiled per vector width; every CPU has 16 bytes.
void across_16(const Strip& s, const Axis& axis) { resize_across<16>(s, axis); }
void down_16(const Column& c, const Weights& weights) { resize_down<16>(c, weights); }
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) void across_32(const Strip& s, const Axis& axis) { resize_across<32>(s, axis); }
__attribute__((target("avx2"))) void down_32(const Column& c, const Weights& weights) {
  resize_down<32>(c, weights);
}
__attribute__((target("avx512bw,avx512vnni"))) void across_64(const Strip& s, const Axis& axis) {
  resize_across<64>(s, axis);
}
__attribute__((target("avx512bw,avx512vnni"))) void down_64(const Column& c, const Weights& weights) {
  resize_down<64>(c, weights);
}
#endif

void grow(std::vector<uint8_t>* buffer, size_t size) {
  if (buffer->size() < size) buffer->resize(size);
}

}  // namespace

int widest_vector() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) return 64;
  if (__builtin_cpu_supports("avx2")) return 32;
#endif
  return 16;
}

Resizer::Resizer(int vector_bytes) : across_kernel_(across_16), down_kernel_(down_16) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (vector_bytes == 32) across_kernel_ = across_32, down_kernel_ = down_32;
  if (vector_bytes == 64) across_kernel_ = across_64, down_kernel_ = down_64;
#endif
}

Weights Axis::weights_of(int pixel) const {
  return {&weights[size_t(pixel) * places], &pairs[size_t(pixel) * places], count[pixel]};
}

// Pillow's precompute_coeffs and normalize_coeffs_8bpc, limited to the pixels of the window.
void Axis::plan(int length, int resized, int window, int size, int filter) {
  const double scale = double(length) / resized, shrink = scale < 1.0 ? 1.0 : scale;
  const double support = (filter == BICUBIC ? 2.0 : 1.0) * shrink, per_pixel = 1.0 / shrink;
  const int max_count = int(std::min(std::ceil(support) * 2 + 1, double(length)));
  places = max_count + max_count % 2;
  first.resize(size);
  count.resize(size);
  weights.resize(size_t(size) * places);
  pairs.resize(size_t(size) * places);
  std::vector<double> exact(max_count);
  for (int i = 0; i < size; i++) {
    const double centre = (window + i + 0.5) * scale;
    first[i] = std::max(0, int(centre - support + 0.5));
    count[i] = std::min(length, int(centre + support + 0.5)) - first[i];
    double sum = 0.0;
    for (int k = 0; k < count[i]; k++) {
      exact[k] = filter_value((k + first[i] - centre + 0.5) * per_pixel, filter);
      sum += exact[k];
    }
    int32_t *whole = &weights[size_t(i) * places], *pair = &pairs[size_t(i) * places];
    for (int k = 0; k < count[i]; k++) {
      const double weight = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << WEIGHT_BITS);
      whole[k] = int32_t(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    if (count[i] % 2) whole[count[i]] = 0;
    for (int k = 0; k < count[i]; k += 2) make_pair(whole[k], whole[k + 1], pair + k);
  }
  begin = first[0];
  end = first[size - 1] + count[size - 1];
  for (int& f : first) f -= begin;
}

void Resizer::plan(const CropRow& row, int size) {
  size_ = size;
  flip_ = row.flip;
  const int lower = row.height - row.resized_height, narrower = row.width - row.resized_width;
  down_first_ = lower > 0 && lower > 2 * narrower;
  across.plan(row.width, row.resized_width, row.window_left, size, row.filter);
  down.plan(row.height, row.resized_height, row.window_top, size, row.filter);
}

void Resizer::open(size_t stride, size_t skip, uint8_t* image) {
  stride_ = stride;
  skip_ = skip;
  image_ = image;
  num_kept_ = first_kept_ = next_ = 0;
  const size_t in_bytes = 3 * size_t(across.end - across.begin), out_bytes = 3 * size_t(size_);
  kept_bytes_ = down_first_ ? in_bytes : out_bytes;
  kept_stride_ = whole_blocks(kept_bytes_);
  grow(&strip_, STRIP_ROWS * stride + BLOCK);
  grow(&turned_, STRIP_ROWS * whole_blocks(in_bytes));
  grow(&resized_, STRIP_ROWS * whole_blocks(out_bytes));
  grow(&kept_, kept_stride_ * (down.places + STRIP_ROWS));
  if (down_first_) {
    grow(&lowered_, STRIP_ROWS * kept_stride_);
    grow(&done_, STRIP_ROWS * whole_blocks(out_bytes));
  }
}

void Resizer::resize_width(const uint8_t* in, size_t in_stride, uint8_t* out) {
  const size_t out_stride = whole_blocks(3 * size_t(size_));
  const Strip strip = {in, in_stride, turned_.data(), resized_.data(), out, out_stride, size_, flip_};
  across_kernel_(strip, across);
}

// kept_ collects rows until all input rows of the next output row are there.
void Resizer::push(int num_rows) {
  uint8_t* const free = kept_.data() + num_kept_ * kept_stride_;
  if (down_first_) {
    for (int i = 0; i < num_rows; i++) std::memcpy(free + i * kept_stride_, strip(i) + skip_, kept_bytes_);
  } else {
    resize_width(strip(0) + skip_, stride_, free);
  }
  num_kept_ += num_rows;
  while (next_ < size_ && down.first[next_] + down.count[next_] <= first_kept_ + num_kept_) make_row();
  if (next_ == size_) return;
  const int num_done = std::min(down.first[next_] - first_kept_, num_kept_);
  num_kept_ -= num_done;
  first_kept_ += num_done;
  std::memmove(kept_.data(), kept_.data() + num_done * kept_stride_, num_kept_ * kept_stride_);
}

void Resizer::make_row() {
  const size_t out_bytes = 3 * size_t(size_), done_stride = whole_blocks(out_bytes);
  const int place = next_ % STRIP_ROWS;
  const uint8_t* const in = kept_.data() + (down.first[next_] - first_kept_) * kept_stride_;
  uint8_t* const out = down_first_ ? lowered_.data() + place * kept_stride_ : image_ + next_ * out_bytes;
  down_kernel_({out, in, kept_stride_, kept_bytes_}, down.weights_of(next_));
  next_++;
  if (!down_first_ || (place + 1 < STRIP_ROWS && next_ < size_)) return;
  resize_width(lowered_.data(), kept_stride_, done_.data());
  uint8_t* const rows = image_ + (next_ - 1 - place) * out_bytes;
  for (int i = 0; i <= place; i++) std::memcpy(rows + i * out_bytes, done_.data() + i * done_stride, out_bytes);
}
