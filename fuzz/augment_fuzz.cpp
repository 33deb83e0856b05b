// Fuzz vitkd_augment with random plans; stops at the first failure.
//
//   augment_fuzz [--seconds N] [--seed N]
//
// A failure is a sanitizer report, a byte written outside the images, a rectangle outside its image that is accepted, or
// a different result with another vector width.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../vitkd_ds/data/beton/csrc/decode.h"

namespace {

constexpr int GUARD = 64, NUM_IMAGES = 2;
std::mt19937_64 dice;

int below(int count) { return int(dice() % uint64_t(count)); }

// Usually a value in the range used in training, sometimes an extreme number.
double any_argument() {
  const double extremes[] = {0, -0.0, 1, -1, 1e-300, 1e9, -1e9, 255, 256, 0.5};
  if (below(8) == 0) return extremes[below(10)];
  return (double(dice() >> 11) / double(1ull << 53) - 0.5) * (below(2) ? 4 : 400);
}

Operation any_operation() {
  Operation operation = {};
  operation.op = below(18) - 1;
  operation.filter = below(2);
  for (double& argument : operation.arguments) argument = any_argument();
  if (operation.op == POSTERIZE || operation.op == SOLARIZE_ADD) operation.arguments[0] = below(300) - 20;
  if (operation.op == GAUSSIAN_BLUR) {
    for (int i = 0; i < 3; i++) operation.arguments[i] = below(1 << 24);
  }
  return operation;
}

void fail(const char* what, unsigned long long seed) {
  std::printf("%s, seed %llu\n", what, seed);
  std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 60;
  unsigned long long seed = std::random_device()();
  bool is_single = false;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--seconds") seconds = std::atof(argv[i + 1]);
    if (name == "--seed") seed = std::strtoull(argv[i + 1], nullptr, 10), is_single = true;
  }
  std::vector<uint8_t> levels(3 * 65536);
  for (size_t i = 0; i < levels.size(); i++) levels[i] = uint8_t(i * 7);
  const auto start = std::chrono::steady_clock::now();
  unsigned long long done = 0, refused = 0;
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds; done++, seed++) {
    dice.seed(seed);
    const int height = 1 + below(40), width = 1 + below(40), num_layers = below(4);
    std::vector<Operation> operations(size_t(NUM_IMAGES) * num_layers);
    for (Operation& operation : operations) operation = any_operation();
    Rectangle rectangles[NUM_IMAGES] = {};
    bool is_outside = false;
    for (Rectangle& box : rectangles) {
      box = {dice(), below(height), below(width), 0, 0};
      box.height = below(height - box.top + 1), box.width = below(width - box.left + 1);
      if (below(8) == 0) (&box.top)[below(4)] = below(50) - 5;
      is_outside |= box.top < 0 || box.left < 0 || box.height < 0 || box.width < 0 || box.top + box.height > height ||
                    box.left + box.width > width;
    }
    const AugmentPlan plan = {operations.data(), num_layers, rectangles, levels.data(), {1, 2, 3}};
    const size_t num_bytes = size_t(NUM_IMAGES) * height * width * 3;
    std::vector<uint8_t> source(num_bytes + 2 * GUARD, 99);
    for (size_t i = 0; i < num_bytes; i++) source[GUARD + i] = uint8_t(below(4) ? dice() : 255);
    std::vector<uint8_t> images[2] = {source, source};
    int results[2];
    for (int i = 0; i < 2; i++) {
      const int vector_bytes = i ? vitkd_widest_vector() : 16;
      results[i] = vitkd_augment(images[i].data() + GUARD, NUM_IMAGES, height, width, &plan, vector_bytes);
      for (size_t k = 0; k < GUARD; k++) {
        if (images[i][k] != 99 || images[i][GUARD + num_bytes + k] != 99) fail("a byte was written outside the images", seed);
      }
    }
    if (results[0] != results[1] || (results[0] != 0) != is_outside) fail("wrong result for a rectangle", seed);
    if (images[0] != images[1]) fail("pixels depend on the vector width", seed);
    refused += is_outside;
    if (is_single) break;
  }
  std::printf("%llu plans, no failure; rejected %llu\n", done, refused);
}
