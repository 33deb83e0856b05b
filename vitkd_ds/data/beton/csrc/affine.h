// Rotate, shear and translate as Pillow's affine transformation does: in float64, with bilinear or bicubic (a = -1)
// interpolation; results are truncated to integers.
//
// Output pixel (x, y) is interpolated at the source point matrix * (x + 0.5, y + 0.5). If this point is outside the
// image, the pixel gets the fill colour. Beyond the edge, interpolation uses copies of the edge pixels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#pragma GCC diagnostic ignored "-Wpsabi"  // functions that take or return a vector are inlined

#define INLINE static inline __attribute__((always_inline))

struct Pixels {
  uint8_t* image;  // [height, width, 3]
  int height, width;
  std::vector<uint8_t>& copy;

  size_t row_bytes() const { return size_t(3) * width; }
  size_t num_bytes() const { return row_bytes() * height; }
  template <typename T = uint8_t>
  T* reserve(size_t count) const {
    if (copy.size() < count * sizeof(T) + sizeof(T)) copy.resize(count * sizeof(T) + sizeof(T));
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(copy.data()) + sizeof(T) - 1) / sizeof(T) * sizeof(T));
  }
};

constexpr int MARGIN = 2;  // bicubic interpolation reads up to 2 pixels beyond the edge
typedef int32_t Ints __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));  // red, green, blue, unused
typedef double Quad __attribute__((vector_size(32)));

INLINE uint8_t clipped(double value) { return uint8_t(int(std::min(std::max(value, 0.0), 255.0))); }
INLINE uint8_t clipped(float value) { return uint8_t(int(std::min(std::max(value, 0.0f), 255.0f))); }

INLINE Floats load(const uint8_t* pixel) {
  const uint32_t word = pixel[0] | pixel[1] << 8 | pixel[2] << 16;
  return __builtin_convertvector(((Ints{} + int32_t(word)) >> Ints{0, 8, 16, 24}) & 255, Floats);
}

// Store levels 0..255. May overwrite the byte after the pixel (but not at `end`), so pixels must be stored in order.
INLINE void store(uint8_t* pixel, Ints levels, const uint8_t* end) {
  const uint32_t word = uint32_t(levels[0] | levels[1] << 8 | levels[2] << 16);
  std::memcpy(pixel, &word, pixel + 4 <= end ? 4 : 3);
}

// Convert the image to Floats, with MARGIN repeated edge pixels on each side.
INLINE void pad(Floats* out, const Pixels& pixels) {
  for (int y = -MARGIN; y < pixels.height + MARGIN; y++) {
    const uint8_t* pixel = pixels.image + std::clamp(y, 0, pixels.height - 1) * pixels.row_bytes();
    for (int x = 0; x < MARGIN; x++) *out++ = load(pixel);
    for (int x = 0; x < pixels.width; x++, pixel += 3) *out++ = load(pixel);
    pixel -= 3;
    for (int x = 0; x < MARGIN; x++) *out++ = load(pixel);
  }
}

INLINE Quad tap(const Floats* pixel) { return __builtin_convertvector(*pixel, Quad); }

INLINE Quad linear(Quad a, Quad b, double d) { return a + (b - a) * d; }

INLINE Quad cubic(Quad v1, Quad v2, Quad v3, Quad v4, double d) {
  const Quad p2 = -v1 + v3, p3 = 2 * (v1 - v2) + v3 - v4, p4 = -v1 + v2 - v3 + v4;
  return v2 + d * (p2 + d * (p3 + d * p4));
}

// Interpolate in a row, between two pixels (bilinear) or four (bicubic). `pixel` is the last pixel before the point or
// at it, and `d` is the distance of the point from this pixel.
template <bool IS_CUBIC>
INLINE Quad across(const Floats* pixel, double d) {
  if (d == 0) return tap(pixel);
  if (!IS_CUBIC) return linear(tap(pixel), tap(pixel + 1), d);
  return cubic(tap(pixel - 1), tap(pixel), tap(pixel + 1), tap(pixel + 2), d);
}

template <bool IS_CUBIC>
INLINE Quad between(const Floats* pixel, size_t stride, double dx, double dy) {
  const Quad row = across<IS_CUBIC>(pixel, dx);
  if (dy == 0) return row;
  const Quad next = across<IS_CUBIC>(pixel + stride, dx);
  if (!IS_CUBIC) return linear(row, next, dy);
  return cubic(across<IS_CUBIC>(pixel - stride, dx), row, next, across<IS_CUBIC>(pixel + 2 * stride, dx), dy);
}

constexpr int CHUNK = 64;
struct Sources {  // source points of CHUNK neighbouring pixels
  int32_t place[CHUNK];  // index in the padded image, or -1 if the source point is outside the image
  double dx[CHUNK], dy[CHUNK];
};

// Return the floor of each position, and store the remainder in `fraction`. Positions must be at least -0.5.
INLINE Quad split(Quad position, double* fraction) {
  const Quad zero = {}, truncated = __builtin_convertvector(__builtin_convertvector(position, Ints), Quad);
  const Quad whole = position < zero ? truncated - 1 : truncated, rest = position - whole;
  std::memcpy(fraction, &rest, sizeof(rest));
  return whole;
}

INLINE void find_sources(Sources& sources, const double* a, int first, int y, int height, int width) {
  const double x_of_row = a[1] * (y + 0.5), y_of_row = a[4] * (y + 0.5);
  const Quad zero = {}, ends_x = zero + width, ends_y = zero + height, half = zero + 0.5;
  for (int i = 0; i < CHUNK; i += 4) {
    const Quad x = Quad{0.5, 1.5, 2.5, 3.5} + double(first + i);
    const Quad xin = a[0] * x + x_of_row + a[2], yin = a[3] * x + y_of_row + a[5];
    const auto is_covered = (xin >= zero) & (xin < ends_x) & (yin >= zero) & (yin < ends_y);
    const Quad left = split((is_covered ? xin : half) - 0.5, sources.dx + i);
    const Quad upper = split((is_covered ? yin : half) - 0.5, sources.dy + i);
    const Quad place = (upper + MARGIN) * double(width + 2 * MARGIN) + left + MARGIN;
    const Ints found = __builtin_convertvector(is_covered ? place : zero - 1, Ints);
    std::memcpy(sources.place + i, &found, sizeof(found));
  }
}

template <bool IS_CUBIC>
INLINE void affine(const Pixels& pixels, const double* a, const uint8_t* fill) {
  const int height = pixels.height, width = pixels.width;
  const size_t stride = width + 2 * MARGIN;
  const Quad black = {}, white = black + 255;
  Floats* const padded = pixels.reserve<Floats>(stride * (height + 2 * MARGIN));
  pad(padded, pixels);
  uint8_t *out = pixels.image, *const end = out + pixels.num_bytes();
  Sources sources;
  for (int y = 0; y < height; y++) {
    for (int x = 0; x < width; x++, out += 3) {
      const int i = x % CHUNK;
      if (i == 0) find_sources(sources, a, x, y, height, width);
      if (sources.place[i] < 0) {
        std::memcpy(out, fill, 3);
        continue;
      }
      Quad value = between<IS_CUBIC>(padded + sources.place[i], stride, sources.dx[i], sources.dy[i]);
      value = value < black ? black : value > white ? white : value;
      store(out, __builtin_convertvector(value, Ints), end);
    }
  }
}
