// Read images into the page cache before they are decoded; the C side of vitkd_ds/data/beton/read_ahead.py.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <vector>

#include "decode.h"

namespace {

constexpr int MAX_READERS = 64;

struct Reading {
  int fd;
  const StoredImage* table;
  const int64_t* indices;
  int64_t num_indices;
  double* seconds;
  std::atomic<int64_t> next{0};
};

// Work of one thread. Read errors are ignored; the decoder will report them.
void read_images(Reading* reading) noexcept {
  using Clock = std::chrono::steady_clock;
  std::vector<uint8_t> bytes;
  for (int64_t i; (i = reading->next++) < reading->num_indices;) {
    const StoredImage& image = reading->table[reading->indices[i]];
    try {
      if (bytes.size() < image.size) bytes.resize(image.size);
    } catch (const std::exception&) {
      continue;
    }
    const Clock::time_point start = Clock::now();
    if (pread(reading->fd, bytes.data(), image.size, off_t(image.offset)) < 0) continue;
    reading->seconds[i] = std::chrono::duration<double>(Clock::now() - start).count();
  }
}

}  // namespace

int vitkd_read_ahead(int fd, const StoredImage* table, int64_t num_images, const int64_t* indices, int64_t num_indices,
                     int32_t num_threads, double* seconds) {
  if (num_threads < 1) return -1;
  for (int64_t i = 0; i < num_indices; i++) {
    if (indices[i] < 0 || indices[i] >= num_images) return -1;
    seconds[i] = 0;
  }
  Reading reading{fd, table, indices, num_indices, seconds};
  std::thread threads[MAX_READERS];
  const int64_t num_helpers = std::min<int64_t>({num_threads, num_indices, MAX_READERS}) - 1;
  try {
    for (int64_t i = 0; i < num_helpers; i++) threads[i] = std::thread(read_images, &reading);
  } catch (const std::exception&) {  // cannot start more threads: those already running read everything
  }
  read_images(&reading);
  for (std::thread& thread : threads) {
    if (thread.joinable()) thread.join();
  }
  return 0;
}
