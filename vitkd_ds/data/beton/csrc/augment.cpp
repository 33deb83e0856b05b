// Augmentation operations. Functions marked INLINE are compiled once per vector width.
#include "augment.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "affine.h"
#include "resize.h"

namespace {

constexpr int LEVELS = 256;
constexpr uint64_t NOISE_DRAWS = 1 << 20;  // same as in policy.py
typedef uint8_t Table[3][LEVELS];

template <typename T>
INLINE T blend(T plain, T image, float factor) {
  return plain + factor * (image - plain);
}

INLINE int grey_of(const uint8_t* pixel) {
  return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 32768) >> 16;
}

// ---- operations that replace each level (value of a byte) by the level in a table

INLINE void fill_table(Table& table, const Operation& operation) {
  const double argument = operation.arguments[0];
  for (int level = 0; level < LEVELS; level++) {
    int value = level;
    switch (operation.op) {
      case INVERT:
        value = 255 - level;
        break;
      case POSTERIZE:  // 0 bits give black, as in Pillow up to 12; Pillow 13 raises an error
        value = level & ~((1 << (8 - std::clamp(int(argument), 0, 8))) - 1);
        break;
      case SOLARIZE:
        value = level < argument ? level : 255 - level;
        break;
      case SOLARIZE_ADD:
        value = level < 128 ? std::min(level + int(argument), 255) : level;
        break;
      case BRIGHTNESS:
        value = clipped(blend(0.0f, float(level), float(argument)));
        break;
    }
    for (auto& colour : table) colour[level] = uint8_t(value);
  }
}

// Fill the table that blends each level with the rounded mean grey of the image.
INLINE void contrast_table(Table& table, const Pixels& pixels, float factor) {
  const int64_t count = int64_t(pixels.height) * pixels.width;
  int64_t sum = 0;
  for (int64_t i = 0; i < count; i++) sum += grey_of(pixels.image + 3 * i);
  const float mean = float((2 * sum + count) / (2 * count));
  for (int level = 0; level < LEVELS; level++) {
    const uint8_t value = clipped(blend(mean, float(level), factor));
    for (auto& colour : table) colour[level] = value;
  }
}

INLINE void count_levels(int64_t (&counts)[3][LEVELS], const Pixels& pixels) {
  std::memset(counts, 0, sizeof(counts));
  for (size_t i = 0; i < pixels.num_bytes(); i += 3) {
    for (int c = 0; c < 3; c++) counts[c][pixels.image[i + c]]++;
  }
}

// Stretch each colour to 0..255, in float64 like Pillow's Python code; a colour with a single level is unchanged.
INLINE void auto_contrast_table(Table& table, const int64_t (&counts)[3][LEVELS]) {
  for (int c = 0; c < 3; c++) {
    int low = 0, high = LEVELS - 1;
    while (!counts[c][low]) low++;
    while (!counts[c][high]) high--;
    const double scale = high > low ? 255.0 / (high - low) : 1.0, offset = high > low ? -low * scale : 0.0;
    for (int level = 0; level < LEVELS; level++) table[c][level] = clipped(level * scale + offset);
  }
}

// Equalize each colour's histogram; a colour with too few pixels for a step, or with a single level, is unchanged.
INLINE void equalize_table(Table& table, const int64_t (&counts)[3][LEVELS], int64_t num_pixels) {
  for (int c = 0; c < 3; c++) {
    int high = LEVELS - 1;
    while (!counts[c][high]) high--;
    const int64_t step = (num_pixels - counts[c][high]) / 255;
    int64_t below = step / 2;
    for (int level = 0; level < LEVELS; level++) {
      table[c][level] = step ? uint8_t(std::min<int64_t>(below / step, 255)) : uint8_t(level);
      below += counts[c][level];
    }
  }
}

INLINE void look_up(const Pixels& pixels, const Operation& operation) {
  Table table;
  int64_t counts[3][LEVELS];
  switch (operation.op) {
    case CONTRAST:
      contrast_table(table, pixels, float(operation.arguments[0]));
      break;
    case AUTO_CONTRAST:
      count_levels(counts, pixels);
      auto_contrast_table(table, counts);
      break;
    case EQUALIZE:
      count_levels(counts, pixels);
      equalize_table(table, counts, int64_t(pixels.height) * pixels.width);
      break;
    default:
      fill_table(table, operation);
  }
  for (size_t i = 0; i < pixels.num_bytes(); i += 3) {
    for (int c = 0; c < 3; c++) pixels.image[i + c] = table[c][pixels.image[i + c]];
  }
}

// ---- operations that blend the image with a grey or smoothed image

INLINE void color(const Pixels& pixels, float factor) {
  const Floats black = {}, white = black + 255;
  for (size_t i = 0; i < pixels.num_bytes(); i += 3) {
    uint8_t* pixel = pixels.image + i;
    const float grey = float(grey_of(pixel));
    const Floats value = blend(Floats{} + grey, load(pixel), factor);
    const Ints levels = __builtin_convertvector(value < black ? black : value > white ? white : value, Ints);
    for (int c = 0; c < 3; c++) pixel[c] = uint8_t(levels[c]);
  }
}

// Blend each pixel with the rounded mean of its 3 x 3 neighbourhood, in which the centre counts five times. The
// outermost pixels are unchanged.
INLINE void sharpness(const Pixels& pixels, float factor) {
  if (pixels.height < 3 || pixels.width < 3) return;
  const size_t stride = pixels.row_bytes();
  uint8_t* const copy = pixels.reserve(pixels.num_bytes());
  std::memcpy(copy, pixels.image, pixels.num_bytes());
  for (int y = 1; y < pixels.height - 1; y++) {
    const uint8_t *above = copy + (y - 1) * stride, *row = above + stride, *below = row + stride;
    uint8_t* const out = pixels.image + y * stride;
    for (size_t i = 3; i < stride - 3; i++) {
      const int sum = above[i - 3] + above[i] + above[i + 3] + row[i - 3] + 5 * row[i] + row[i + 3] + below[i - 3] +
                      below[i] + below[i + 3];
      out[i] = clipped(blend(float((2 * sum + 13) / 26), float(row[i]), factor));
    }
  }
}

// ---- Gaussian blur: three box blurs along rows, then three along columns, each rounded to 8 bits

INLINE void box_blur(uint8_t* out, const uint8_t* const (&taps)[5], size_t count, const uint32_t (&weights)[3]) {
  for (size_t i = 0; i < count; i++) {
    const uint32_t near = taps[1][i] + taps[3][i], far = taps[0][i] + taps[4][i];
    out[i] = uint8_t((weights[0] * taps[2][i] + weights[1] * near + weights[2] * far + (1u << 23)) >> 24);
  }
}

INLINE void gaussian_blur(const Pixels& pixels, const double* arguments) {
  const uint32_t weights[3] = {uint32_t(arguments[0]), uint32_t(arguments[1]), uint32_t(arguments[2])};
  const size_t stride = pixels.row_bytes(), margin = 6;
  uint8_t* const copy = pixels.reserve(std::max(pixels.num_bytes(), stride + 2 * margin));
  for (int y = 0; y < pixels.height; y++) {
    uint8_t* const row = pixels.image + y * stride;
    for (int pass = 0; pass < 3; pass++) {
      std::memcpy(copy + margin, row, stride);
      for (size_t i = 0; i < margin; i++) copy[i] = row[i % 3], copy[margin + stride + i] = row[stride - 3 + i % 3];
      const uint8_t* const taps[5] = {copy, copy + 3, copy + 6, copy + 9, copy + 12};
      box_blur(row, taps, stride, weights);
    }
  }
  for (int pass = 0; pass < 3; pass++) {
    std::memcpy(copy, pixels.image, pixels.num_bytes());
    for (int y = 0; y < pixels.height; y++) {
      const uint8_t* taps[5];
      for (int k = 0; k < 5; k++) taps[k] = copy + std::clamp(y + k - 2, 0, pixels.height - 1) * stride;
      box_blur(pixels.image + y * stride, taps, stride, weights);
    }
  }
}

INLINE void operate(const Operation& operation, const uint8_t* fill, Pixels& pixels) {
  switch (operation.op) {
    case COLOR:
      return color(pixels, float(operation.arguments[0]));
    case SHARPNESS:
      return sharpness(pixels, float(operation.arguments[0]));
    case GAUSSIAN_BLUR:
      return gaussian_blur(pixels, operation.arguments);
    case ROTATE:
    case SHEAR_X:
    case SHEAR_Y:
    case TRANSLATE_X:
    case TRANSLATE_Y:
      if (operation.filter == BICUBIC) return affine<true>(pixels, operation.arguments, fill);
      return affine<false>(pixels, operation.arguments, fill);
    default:
      return look_up(pixels, operation);
  }
}

void operate_16(const Operation& operation, const uint8_t* fill, Pixels& pixels) { operate(operation, fill, pixels); }
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) void operate_32(const Operation& operation, const uint8_t* fill, Pixels& pixels) {
  operate(operation, fill, pixels);
}
#endif

// splitmix64, same as in draws.py.
uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// Fill the rectangle with noise. Each byte uses 16 random bits: bytes 4n to 4n + 3 of an image share the four quarters
// of its n-th 64-bit random number.
void erase(const Rectangle& rectangle, const uint8_t* levels, uint8_t* image, int width) {
  for (int y = rectangle.top; y < rectangle.top + rectangle.height; y++) {
    const size_t first = 3 * (size_t(y) * width + rectangle.left), end = first + 3 * size_t(rectangle.width);
    uint64_t bits = 0;
    for (size_t i = first, colour = 0; i < end; i++, colour = colour == 2 ? 0 : colour + 1) {
      if (i == first || i % 4 == 0) bits = mix64(rectangle.key + (NOISE_DRAWS + i / 4) * 0xD1B54A32D192ED03);
      image[i] = levels[colour * 65536 + (bits >> (16 * (i % 4)) & 65535)];
    }
  }
}

}  // namespace

Augmenter::Augmenter(int vector_bytes) : operate_(operate_16) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (vector_bytes >= 32) operate_ = operate_32;
#endif
}

bool Augmenter::apply(const AugmentPlan& plan, int64_t row, uint8_t* image, int height, int width) {
  Pixels pixels{image, height, width, copy_};
  for (int64_t layer = 0; layer < plan.num_layers; layer++) {
    const Operation& operation = plan.operations[row * plan.num_layers + layer];
    if (operation.op != NO_OP) operate_(operation, plan.fill, pixels);
  }
  const Rectangle& box = plan.rectangles[row];
  const auto inside = [](int first, int length, int whole) { return first >= 0 && length >= 0 && first <= whole - length; };
  if (!inside(box.top, box.height, height) || !inside(box.left, box.width, width)) return false;
  erase(box, plan.levels, image, width);
  return true;
}

int vitkd_augment(uint8_t* images, int64_t num_images, int32_t height, int32_t width, const AugmentPlan* plan,
                  int32_t vector_bytes) {
  if (vector_bytes == 0) vector_bytes = widest_vector();
  if (vector_bytes < 16 || vector_bytes > widest_vector() || num_images < 0 || height < 1 || width < 1) return -1;
  try {
    Augmenter augmenter(vector_bytes);
    const size_t image_bytes = size_t(3) * height * width;
    for (int64_t i = 0; i < num_images; i++) {
      if (!augmenter.apply(*plan, i, images + i * image_bytes, height, width)) return -1;
    }
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return 0;
}
