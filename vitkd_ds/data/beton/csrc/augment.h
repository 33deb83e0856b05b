// RandAugment, 3-Augment, colour jitter and random erasing of one image after its crop, in the thread that decoded it.
//
// What is done comes in rows, drawn beforehand: nothing is random here. Pixels are those of Pillow, and of timm's
// operations on it, bit for bit on any CPU: arithmetic has Pillow's order and width, and no fused multiplications.
#pragma once

#include <cstdint>
#include <vector>

// Numbers in OPS of policy.py.
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

// One operation on one image: OPERATION_DTYPE of operations.py, where the arguments are explained.
struct Operation {
  int32_t op, filter;
  double arguments[6];
};
static_assert(sizeof(Operation) == 56, "OPERATION_DTYPE has 56 bytes");

// What is erased of one image, in pixels; nothing if the height is 0. RECTANGLE_DTYPE of noise.py.
struct Rectangle {
  uint64_t key;
  int32_t top, left, height, width;
};
static_assert(sizeof(Rectangle) == 24, "RECTANGLE_DTYPE has 24 bytes");

// What is done to a micro-batch: Plan of augmenter.py.
struct AugmentPlan {
  const Operation* operations;  // [num_images, num_layers], applied in this order
  int64_t num_layers;
  const Rectangle* rectangles;  // [num_images], after the operations
  const uint8_t* levels;        // [3, 65536], the level that 16 random bits become, per colour
  uint8_t fill[8];              // what a geometric operation uncovers; the first 3 count
};

struct Pixels;  // an image and the buffers of one thread

// Augments one image at a time, in place; the buffers stay for the next.
class Augmenter {
 public:
  explicit Augmenter(int vector_bytes);
  // Returns false, and does nothing more, if the plan erases outside of the image.
  bool apply(const AugmentPlan& plan, int64_t row, uint8_t* image, int height, int width);

 private:
  void (*operate_)(const Operation&, const uint8_t* fill, Pixels&);
  std::vector<uint8_t> copy_;
};

extern "C" {

// Augment images [num_images, height, width, 3] in place, in the calling thread; for tests. vector_bytes as in decode.h.
// Returns 0, or -1 if an argument is out of range or there is no memory, and not all was done.
int vitkd_augment(uint8_t* images, int64_t num_images, int32_t height, int32_t width, const AugmentPlan* plan,
                  int32_t vector_bytes);
}
