// RandAugment, 3-Augment, colour jitter and random erasing, applied after the crop by the image's decoder thread.
//
// Python draws all random parameters beforehand. The pixels equal those of Pillow and of timm's Pillow operations bit
// for bit on any CPU, because the arithmetic has the order and the precision of Pillow's and uses no fused
// multiply-add.
#pragma once

#include <cstdint>
#include <vector>

// Indices into OPS of policy.py.
enum Op : int32_t {
  NO_OP = -1,
  AUTO_CONTRAST,
  EQUALIZE,
  INVERT,
  ROTATE,
  POSTERIZE,
  SOLARIZE,
  SOLARIZE_ADD,
  COLOR,
  CONTRAST,
  BRIGHTNESS,
  SHARPNESS,
  SHEAR_X,
  SHEAR_Y,
  TRANSLATE_X,
  TRANSLATE_Y,
  GAUSSIAN_BLUR,
};

// Operation on one image. OPERATION_DTYPE of operations.py explains the arguments.
struct Operation {
  int32_t op, filter;
  double arguments[6];
};
static_assert(sizeof(Operation) == 56, "OPERATION_DTYPE has 56 bytes");

// Rectangle to erase, in pixels. If the height is 0, nothing is erased. Same fields as RECTANGLE_DTYPE of noise.py.
struct Rectangle {
  uint64_t key;
  int32_t top, left, height, width;
};
static_assert(sizeof(Rectangle) == 24, "RECTANGLE_DTYPE has 24 bytes");

// Augmentation of a micro-batch. Plan of augmenter.py creates it.
struct AugmentPlan {
  const Operation* operations;  // [num_images, num_layers], applied in this order
  int64_t num_layers;
  const Rectangle* rectangles;  // [num_images], erased after the operations
  const uint8_t* levels;        // [3, 65536], noise level per colour and 16-bit random number
  uint8_t fill[8];              // colour of pixels that a geometric operation uncovers; only the first 3 bytes are used
};

struct Pixels;  // an image and the thread's buffer

// Augments one image at a time, in place; reuses its buffer.
class Augmenter {
 public:
  explicit Augmenter(int vector_bytes);
  // Return false, without erasing, if the plan's rectangle is not inside the image.
  bool apply(const AugmentPlan& plan, int64_t row, uint8_t* image, int height, int width);

 private:
  void (*operate_)(const Operation&, const uint8_t* fill, Pixels&);
  std::vector<uint8_t> copy_;
};

extern "C" {

// Augment images [num_images, height, width, 3] in place in the calling thread; used by tests. vector_bytes has the
// meaning described in decode.h. Return 0 on success. Return -1 if an argument is out of range or memory is exhausted;
// some images may then be augmented.
int vitkd_augment(uint8_t* images, int64_t num_images, int32_t height, int32_t width, const AugmentPlan* plan,
                  int32_t vector_bytes);
}
