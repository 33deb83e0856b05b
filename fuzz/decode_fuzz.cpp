// Fuzz vitkd_decode with damaged JPEGs, tables and crops, and vitkd_transcode with the JPEGs; stops at the first failure.
//
//   decode_fuzz CORPUS [--seconds N] [--seed N] [--start N] [--count N]
//
// A failure is one of:
// - a sanitizer report, or a status that does not exist
// - pixels other than black with a status other than DECODED
// - two calls that differ: one thread, then two threads with the rows in reverse, each with a random vector width
// - pixels that differ from those of the whole image (decoded by libjpeg, or stored raw), cropped and resized afterwards
//
// A case depends only on seed and number. A failed run prints a command that repeats it. `make fuzz` builds this program
// with the sanitizers, and the corpus with corpus.py.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <csetjmp>
#include <csignal>
#include <cstdio>  // jpeglib.h needs FILE
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <jpeglib.h>

#include "../vitkd_ds/data/beton/csrc/decode.h"
#include "../vitkd_ds/data/beton/csrc/splice.h"

namespace {

using Bytes = std::vector<uint8_t>;
using Clock = std::chrono::steady_clock;

uint64_t seed = 0, number = 0;  // of the current case
std::string corpus_folder;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Handler of SIGABRT, which the sanitizers and fail() raise.
void print_case(int) {
  std::fprintf(stderr, "FAILED. To repeat: decode_fuzz %s --seed %llu --start %llu --count 1\n", corpus_folder.c_str(),
               static_cast<unsigned long long>(seed), static_cast<unsigned long long>(number));
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// Random generator of one case.
struct Dice {
  std::mt19937_64 engine;
  explicit Dice(uint64_t first, uint64_t second) {
    std::seed_seq both{first, second};
    engine.seed(both);
  }
  // In [0, end); 0 if end is 0.
  uint64_t below(uint64_t end) { return end ? engine() % end : 0; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  int32_t wild() {
    const int32_t values[] = {0, -1, 1, 2, 16, 65535, 65536, INT32_MAX, INT32_MIN, int32_t(engine())};
    return values[below(std::size(values))];
  }
};

// Return the position of the next marker code `code` (any code if 0), or the file's size if there is none.
size_t find_marker(const Bytes& file, size_t from, uint8_t code) {
  for (size_t i = from; i + 1 < file.size(); i++) {
    if (file[i] == 0xFF && (code ? file[i + 1] == code : file[i + 1] != 0 && file[i + 1] != 0xFF)) return i + 1;
  }
  return file.size();
}

size_t find_frame(const Bytes& file) {
  size_t found = file.size();
  for (uint8_t code : {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}) found = std::min(found, find_marker(file, 2, code));
  return found;
}

void damage_marker(Bytes& file, Dice& dice) {
  const size_t marker = find_marker(file, dice.below(file.size()), 0);
  if (marker + 3 >= file.size()) return;
  if (dice.one_in(2)) {
    file[marker] = uint8_t(dice.one_in(2) ? 0xC0 + dice.below(64) : dice.below(256));
  } else {
    file[marker + 1 + dice.below(2)] = uint8_t(dice.below(256));
  }
}

// Damage the frame header: precision, height, width, number of components, then 3 bytes for each component.
void damage_frame(Bytes& file, Dice& dice) {
  const size_t frame = find_frame(file);
  if (frame + 18 >= file.size()) return;
  if (dice.one_in(2)) {
    file[frame + 4 + 2 * dice.below(2)] = uint8_t(dice.one_in(50) ? dice.below(256) : dice.below(3));
    file[frame + 5 + 2 * dice.below(2)] = uint8_t(dice.below(256));
  } else {
    file[frame + 1 + dice.below(17)] = uint8_t(dice.one_in(2) ? dice.below(256) : 0x10 * dice.below(5) + dice.below(5));
  }
}

// Damage the restart interval, a restart marker, or the bytes before one.
void damage_restart(Bytes& file, Dice& dice) {
  const size_t interval = find_marker(file, 2, 0xDD);
  if (dice.one_in(4) && interval + 4 < file.size()) {
    file[interval + 4] = uint8_t(dice.below(8));
    return;
  }
  const size_t marker = find_marker(file, dice.below(file.size()), uint8_t(0xD0 + dice.below(8)));
  if (marker >= file.size()) return;
  const auto at = file.begin() + (marker - 1);
  switch (dice.below(4)) {
    case 0:
      file[marker] = uint8_t(0xD0 + dice.below(8));
      break;
    case 1:
      file.insert(at, 1 + dice.below(12), uint8_t(dice.one_in(2) ? 0 : dice.below(255)));
      break;
    case 2:
      file.erase(at - std::min<size_t>(dice.below(12), marker - 1), at);
      break;
    case 3:
      file.erase(at, at + 2);
      break;
  }
}

void damage(Bytes& file, const Bytes& other, Dice& dice) {
  if (file.empty()) return;
  const size_t at = dice.below(file.size()), length = dice.below(64);
  const auto begin = file.begin() + at, end = begin + std::min(length, file.size() - at);
  switch (dice.below(9)) {
    case 0:
      for (uint64_t n = 1 + dice.below(8); n; n--) file[dice.below(file.size())] ^= uint8_t(1 << dice.below(8));
      break;
    case 1:
      file[at] = uint8_t(dice.one_in(2) ? 0xFF : dice.below(256));
      break;
    case 2:
      file.resize(at);
      break;
    case 3:
      file.resize(at);
      file.insert(file.end(), other.begin() + dice.below(other.size()), other.end());
      break;
    case 4:
      file.erase(begin, end);
      break;
    case 5: {
      const Bytes copy(begin, end);
      file.insert(file.begin() + dice.below(file.size()), copy.begin(), copy.end());
      break;
    }
    case 6:
      damage_marker(file, dice);
      break;
    case 7:
      damage_frame(file, dice);
      break;
    case 8:
      damage_restart(file, dice);
      break;
  }
}

StoredImage make_entry(const Bytes& file, uint64_t offset, Dice& dice) {
  StoredImage entry = {};
  entry.offset = offset;
  entry.size = uint32_t(file.size());
  const size_t frame = find_frame(file);
  if (frame + 7 < file.size()) {
    entry.height = uint16_t(file[frame + 4] << 8 | file[frame + 5]);
    entry.width = uint16_t(file[frame + 6] << 8 | file[frame + 7]);
  }
  entry.has_crc = dice.one_in(2);
  entry.thorough = dice.one_in(4);
  entry.crc32 = uint32_t(crc32(0, file.data(), uInt(file.size()))) ^ uint32_t(dice.one_in(20));
  if (dice.one_in(10)) {
    entry.mode = MODE_RAW;
    entry.width = uint16_t(1 + dice.below(100));
    entry.height = uint16_t(file.size() / 3 / entry.width);
    if (!dice.one_in(8)) entry.size = uint32_t(3) * entry.width * entry.height;
    entry.crc32 = uint32_t(crc32(0, file.data(), std::min<uInt>(entry.size, uInt(file.size()))));
  }
  if (dice.one_in(30)) entry.size = uint32_t(dice.wild());
  if (dice.one_in(30)) entry.offset = uint64_t(int64_t(dice.wild())) << dice.below(33);
  if (dice.one_in(30)) (dice.one_in(2) ? entry.height : entry.width) = uint16_t(dice.wild());
  if (dice.one_in(100)) entry.mode = uint8_t(dice.below(256));
  return entry;
}

CropRow make_row(const StoredImage (&table)[2], int32_t size, Dice& dice) {
  CropRow row = {};
  row.index = int32_t(dice.below(2));
  const StoredImage& entry = table[row.index];
  const int32_t high = std::max<int32_t>(1, entry.height), wide = std::max<int32_t>(1, entry.width);
  row.flip = int32_t(dice.below(2));
  row.filter = int32_t(dice.below(2));
  row.height = dice.one_in(4) ? high : int32_t(1 + dice.below(high));
  row.width = dice.one_in(4) ? wide : int32_t(1 + dice.below(wide));
  row.top = int32_t(dice.below(high - row.height + 1));
  row.left = int32_t(dice.below(wide - row.width + 1));
  const bool is_window = dice.one_in(3);
  row.resized_height = size + int32_t(is_window ? dice.below(60) : 0);
  row.resized_width = size + int32_t(is_window ? dice.below(60) : 0);
  row.window_top = int32_t(dice.below(row.resized_height - size + 1));
  row.window_left = int32_t(dice.below(row.resized_width - size + 1));
  if (dice.one_in(10)) reinterpret_cast<int32_t*>(&row)[dice.below(12)] = dice.wild();
  return row;
}

void check(const std::vector<int32_t>& status, const Bytes& images, size_t image_bytes, size_t (&counts)[10]) {
  for (size_t i = 0; i < status.size(); i++) {
    if (status[i] < DECODED || status[i] > UNKNOWN_KIND) fail("unknown status");
    counts[status[i]]++;
    const auto begin = images.begin() + i * image_bytes;
    const bool is_black = std::all_of(begin, begin + image_bytes, [](uint8_t value) { return value == 0; });
    if (status[i] != DECODED && !is_black) fail("an image that is not DECODED is not black");
  }
}

struct Escape {
  jpeg_error_mgr base;
  jmp_buf place;
};

[[noreturn]] void leave(j_common_ptr jpeg) { std::longjmp(reinterpret_cast<Escape*>(jpeg->err)->place, 1); }
void take_no_notice(j_common_ptr, int) {}

// Decode the whole image with libjpeg, ignoring warnings; missing rows stay black.
Bytes decoded_whole(const Bytes& file, const StoredImage& entry) {
  Bytes pixels(size_t(3) * entry.width * entry.height);
  jpeg_decompress_struct jpeg = {};
  Escape error = {};
  jpeg.err = jpeg_std_error(&error.base);
  error.base.error_exit = leave;
  error.base.emit_message = take_no_notice;
  if (!setjmp(error.place)) {
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, file.data(), file.size());
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg.do_block_smoothing = FALSE;
    jpeg_start_decompress(&jpeg);
    while (jpeg.output_scanline < jpeg.output_height) {
      JSAMPROW row = pixels.data() + size_t(3) * entry.width * jpeg.output_scanline;
      jpeg_read_scanlines(&jpeg, &row, 1);
    }
  }
  jpeg_destroy_decompress(&jpeg);
  return pixels;
}

// Return the expected pixels of a DECODED row.
Bytes expected(int fd, const StoredImage& entry, const CropRow& row, int32_t size, int32_t vector_bytes) {
  Bytes content(entry.size), image(size_t(size) * size * 3);
  if (pread(fd, content.data(), content.size(), off_t(entry.offset)) != ssize_t(content.size())) fail("short read");
  if (entry.mode == MODE_JPG) {
    // Near the end of its buffer, libjpeg decodes invalid codes differently.
    content.resize(entry.size + ROOM_BYTES);
    fill_room(content.data() + entry.size);
    content = decoded_whole(content, entry);
  }
  const int32_t status = vitkd_resize(content.data(), entry.height, entry.width, &row, size, vector_bytes, image.data());
  if (status != DECODED) fail("a row decodes but cannot be resized");
  return image;
}

int32_t draw_width(Dice& dice) {
  const int32_t widths[] = {16, 32, 64};
  return std::min(widths[dice.below(3)], vitkd_widest_vector());
}

// Two images, one of them often undamaged, so that state left behind by one shows in the other.
void run_case(const std::vector<Bytes>& corpus, int fd, size_t (&counts)[10]) {
  Dice dice(seed, number);
  StoredImage table[2];
  if (ftruncate(fd, 0)) fail("no space");
  for (int i = 0; i < 2; i++) {
    Bytes file = corpus[dice.below(corpus.size())];
    for (uint64_t n = dice.below(5); n; n--) damage(file, corpus[dice.below(corpus.size())], dice);
    Bytes written(dice.one_in(4) ? dice.below(file.size() + 1) : 2 * file.size() + (1 << 16));
    if (vitkd_transcode(file.data(), file.size(), written.data(), written.size()) > written.size())
      fail("a transcoded JPEG is larger than its buffer");
    const off_t place = off_t(i << 20 | dice.below(4096));
    if (pwrite(fd, file.data(), file.size(), place) != ssize_t(file.size())) fail("no space");
    table[i] = make_entry(file, uint64_t(place), dice);
  }
  const int32_t size = int32_t(1 + dice.below(dice.one_in(8) ? 100 : 24));
  std::vector<CropRow> rows;
  for (uint64_t n = 1 + dice.below(4); n; n--) rows.push_back(make_row(table, size, dice));

  const size_t image_bytes = size_t(size) * size * 3;
  Bytes images[2];
  std::vector<int32_t> status[2];
  for (int i = 0; i < 2; i++) {
    images[i].assign(rows.size() * image_bytes, uint8_t(77 + i));
    status[i].assign(rows.size(), -1);
    if (vitkd_decode(fd, table, 2, rows.data(), int64_t(rows.size()), size, 1 + i, nullptr, images[i].data(),
                     status[i].data(), draw_width(dice)))
      fail("valid arguments were rejected");
    check(status[i], images[i], image_bytes, counts);
    std::reverse(rows.begin(), rows.end());
  }
  for (size_t i = 0, j = rows.size() - 1; i < rows.size(); i++, j--) {
    const auto one = images[0].begin() + i * image_bytes, other = images[1].begin() + j * image_bytes;
    if (status[0][i] != status[1][j] || !std::equal(one, one + image_bytes, other)) fail("two calls give different results");
    if (status[0][i] != DECODED) continue;
    const Bytes wanted = expected(fd, table[rows[i].index], rows[i], size, draw_width(dice));
    if (!std::equal(one, one + image_bytes, wanted.begin())) fail("pixels differ from those of the whole image");
  }
}

}  // namespace

extern "C" const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: decode_fuzz CORPUS [--seconds N] [--seed N] [--start N] [--count N]\n");
    return 2;
  }
  corpus_folder = argv[1];
  double seconds = 600, slowest = 0;
  uint64_t count = UINT64_MAX, slowest_number = 0;
  seed = uint64_t(Clock::now().time_since_epoch().count());
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const uint64_t value = std::strtoull(argv[i + 1], nullptr, 10);
    if (name == "--seconds") seconds = double(value);
    if (name == "--seed") seed = value;
    if (name == "--start") number = value;
    if (name == "--count") count = value;
  }
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(corpus_folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> corpus;
  for (const std::string& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (corpus.back().empty()) corpus.pop_back();
  }
  if (corpus.empty()) return std::fprintf(stderr, "%s has no readable files\n", argv[1]), 2;
  std::signal(SIGABRT, print_case);
  std::printf("%zu files, seed %llu\n", corpus.size(), static_cast<unsigned long long>(seed));
  const int fd = memfd_create("decode_fuzz", MFD_CLOEXEC);
  size_t counts[10] = {};
  const auto start = Clock::now();
  uint64_t done = 0;
  for (; done < count && seconds_since(start) < seconds; done++, number++) {
    const auto begin = Clock::now();
    run_case(corpus, fd, counts);
    const double took = seconds_since(begin);
    if (took > slowest) slowest = took, slowest_number = number;
  }
  const char* names[] = {"decoded",  "bad JPEG",    "bad size", "short read",
                         "bad CRC", "bad colours", "bad row",  "no memory",  "missing scans", "unknown kind"};
  const auto as_printed = [](uint64_t value) { return static_cast<unsigned long long>(value); };
  std::printf("%llu cases, no failure; slowest %.2f s (case %llu); images:", as_printed(done), slowest,
              as_printed(slowest_number));
  for (int i = 0; i < 10; i++) std::printf(" %s %zu%s", names[i], counts[i], i < 9 ? "," : "\n");
}
