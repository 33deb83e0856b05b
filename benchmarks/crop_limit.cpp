// Upper limit of libjpeg-turbo's speed for random crops: decode the rows and columns of each crop and discard them.
//
//     g++ -O3 crop_limit.cpp -o crop_limit -ljpeg && ./crop_limit FILE CROPS WARM_UP
//
// FILE holds the JPEGs and CROPS an array of struct Crop, which benchmarks/loader_rows.py writes. One thread. The JPEGs
// are in memory before the clock starts, and nothing is resized, flipped, checked or copied. A loader that decodes with
// libjpeg-turbo and reads every bit up to the end of its crop cannot be faster. Prints CPU seconds, wall seconds, the
// number of images, and a sum of some pixels, which keeps the compiler from removing the work.
#include <sys/resource.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include <jpeglib.h>

struct Crop {
  uint64_t offset;
  uint32_t size;
  int32_t top, left, height, width;
  uint32_t unused;
};
static_assert(sizeof(Crop) == 32, "loader_rows.py writes 32 bytes per crop");

static std::vector<char> read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "crop_limit: cannot read %s\n", path);
    std::exit(1);
  }
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

static double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + 1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// Same settings as csrc/decode.cpp, which gives Pillow's pixels.
static uint64_t decode(jpeg_decompress_struct* jpeg, const char* bytes, const Crop& crop, std::vector<JSAMPLE>* pixels) {
  jpeg_mem_src(jpeg, reinterpret_cast<const unsigned char*>(bytes) + crop.offset, crop.size);
  jpeg_read_header(jpeg, TRUE);
  jpeg->out_color_space = JCS_RGB;
  jpeg->dct_method = JDCT_ISLOW;
  jpeg->do_fancy_upsampling = TRUE;
  jpeg_start_decompress(jpeg);
  JDIMENSION left = crop.left, width = crop.width;
  jpeg_crop_scanline(jpeg, &left, &width);
  if (crop.top) jpeg_skip_scanlines(jpeg, crop.top);
  const size_t stride = size_t(3) * jpeg->output_width;
  if (pixels->size() < stride * crop.height) pixels->resize(stride * crop.height);
  for (int y = 0; y < crop.height;) {
    JSAMPROW row = pixels->data() + stride * y;
    y += jpeg_read_scanlines(jpeg, &row, 1);
  }
  jpeg_abort_decompress(jpeg);
  return (*pixels)[stride * (crop.height - 1)];
}

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "crop_limit: expected 3 arguments (FILE CROPS WARM_UP), got %d\n", argc - 1);
    return 1;
  }
  const std::vector<char> bytes = read_file(argv[1]), rows = read_file(argv[2]);
  const Crop* crops = reinterpret_cast<const Crop*>(rows.data());
  const size_t num_crops = rows.size() / sizeof(Crop), num_warm_up = std::atoi(argv[3]);
  jpeg_decompress_struct jpeg;
  jpeg_error_mgr error;
  jpeg.err = jpeg_std_error(&error);
  jpeg_create_decompress(&jpeg);
  std::vector<JSAMPLE> pixels;
  uint64_t sum = 0;
  for (size_t i = 0; i < num_warm_up && i < num_crops; i++) sum += decode(&jpeg, bytes.data(), crops[i], &pixels);
  const double cpu = cpu_seconds();
  const auto wall = std::chrono::steady_clock::now();
  for (size_t i = 0; i < num_crops; i++) sum += decode(&jpeg, bytes.data(), crops[i], &pixels);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - wall;
  std::printf("%.6f %.6f %zu %llu\n", cpu_seconds() - cpu, passed.count(), num_crops, (unsigned long long)sum);
  jpeg_destroy_decompress(&jpeg);
}
