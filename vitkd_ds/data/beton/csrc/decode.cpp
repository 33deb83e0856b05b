// Decode stored images: read, check, and decode only the part of a JPEG that its crop needs.
#include "decode.h"

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE
#include <cstring>

#include <jpeglib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <thread>

#include "errors.h"
#include "resize.h"
#include "splice.h"

namespace {

constexpr int MAX_THREADS = 256;
constexpr size_t READ_BYTES = 1 << 18;       // chunk size for computing the CRC of raw pixels
// libjpeg interpolates chroma between neighbouring columns. A column at the edge of the decoded part therefore differs
// from the same column inside a larger part, so one more column is decoded on each side. If a part has only two columns
// of chroma, libjpeg interpolates differently, so parts have a minimum width.
constexpr int MARGIN = 1, MIN_COLUMNS = 32;

struct Call {
  int fd;
  uint64_t file_size;
  StoredImage* table;
  int64_t num_images;
  const CropRow* rows;
  int64_t num_rows;
  int32_t size, vector_bytes;
  const AugmentPlan* plan;
  uint8_t* images;
  int32_t* status;
  std::atomic<int64_t> next{0};
};

bool row_is_valid(const CropRow& row, int height, int width, int size) {
  const auto inside = [](int first, int length, int whole) {
    return first >= 0 && length >= 1 && length <= whole && first <= whole - length;
  };
  return inside(row.top, row.height, height) && inside(row.left, row.width, width) &&
         row.resized_height <= MAX_RESIZED && inside(row.window_top, size, row.resized_height) &&
         row.resized_width <= MAX_RESIZED && inside(row.window_left, size, row.resized_width) &&
         (row.flip == 0 || row.flip == 1) && (row.filter == BILINEAR || row.filter == BICUBIC);
}

// Return whether all bytes were read. pread does not move the file position, so threads may share the descriptor.
bool read_at(int fd, uint8_t* out, size_t size, uint64_t offset) {
  while (size) {
    const ssize_t n = pread(fd, out, size, off_t(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    out += n, offset += n, size -= n;
  }
  return true;
}

// Return whether a multi-scan JPEG lacks scans: a component has none, or coefficients lack their lowest bits. libjpeg
// reads missing bits as zeros without a warning.
bool lacks_scans(const jpeg_decompress_struct& jpeg) {
  for (int i = 0; i < jpeg.num_components; i++) {
    if (!jpeg.comp_info[i].quant_table) return true;  // set by the component's first scan
    const int* bits_left = jpeg.progressive_mode ? jpeg.coef_bits[i] : nullptr;
    if (bits_left && std::any_of(bits_left, bits_left + DCTSIZE2, [](int bits) { return bits != 0; })) return true;
  }
  return false;
}

// Input for libjpeg: the bytes, the number of padding bytes before each restart marker, and the part of the image that
// the bytes cover.
struct Jpeg {
  const uint8_t* bytes;
  size_t size;
  int padding;
  Box part;
};

// State of one thread. The byte buffer and the resizer are reused for the next image. The libjpeg object is not reused:
// an image without its own tables would be decoded with those of the previous image.
class Worker {
 public:
  explicit Worker(Call* call) : call_(call), resizer_(call->vector_bytes), augmenter_(call->vector_bytes) {}

  void run() {
    for (int64_t i; (i = call_->next.fetch_add(1, std::memory_order_relaxed)) < call_->num_rows;) {
      const size_t image_bytes = size_t(call_->size) * call_->size * 3;
      uint8_t* image = call_->images + i * image_bytes;
      Status status;
      try {
        status = decode(call_->rows[i], image);
        const int size = call_->size;
        if (status == DECODED && call_->plan && !augmenter_.apply(*call_->plan, i, image, size, size)) status = BAD_ROW;
      } catch (const std::bad_alloc&) {
        status = NO_MEMORY;
      }
      if (status != DECODED) std::memset(image, 0, image_bytes);
      call_->status[i] = status;
    }
  }

 private:
  Status decode(const CropRow& row, uint8_t* image);
  Status check_raw(const StoredImage& stored);
  Status decode_raw(const StoredImage& stored, const CropRow& row, uint8_t* image);
  Box needed_box(const StoredImage& stored, const CropRow& row) const;
  Status decode_jpeg(const StoredImage& stored, const CropRow& row, uint8_t* image);
  Status read_jpeg(const Jpeg& source, bool is_strict, const Box& needed, const CropRow& row, uint8_t* image);
  void reserve(size_t size);

  Call* const call_;
  jpeg_decompress_struct jpeg_ = {};
  ErrorManager error_ = {};
  std::unique_ptr<uint8_t[]> bytes_;
  size_t capacity_ = 0;
  Splice splice_;
  Resizer resizer_;
  Augmenter augmenter_;
};

void Worker::reserve(size_t size) {
  if (size <= capacity_) return;
  bytes_.reset();
  capacity_ = 0;
  bytes_.reset(new uint8_t[size]);
  capacity_ = size;
}

Status Worker::decode(const CropRow& row, uint8_t* image) {
  if (row.index < 0 || row.index >= call_->num_images) return BAD_ROW;
  StoredImage& shared = call_->table[row.index];
  StoredImage stored = {};
  std::memcpy(&stored, &shared, offsetof(StoredImage, checked));  // other threads may write `checked`
  if (!row_is_valid(row, stored.height, stored.width, call_->size) || stored.mode > MODE_RAW) return BAD_ROW;
  if (stored.offset > call_->file_size || stored.size > call_->file_size - stored.offset) return SHORT_READ;
  stored.thorough = shared.thorough;
  stored.checked = !stored.has_crc || __atomic_load_n(&shared.checked, __ATOMIC_RELAXED);
  const bool is_raw = stored.mode == MODE_RAW;
  if (is_raw && stored.size != uint64_t(3) * stored.height * stored.width) return BAD_SIZE;
  if (!is_raw) {
    reserve(stored.size + ROOM_BYTES);
    if (!read_at(call_->fd, bytes_.get(), stored.size, stored.offset)) return SHORT_READ;
  }
  if (!stored.checked) {
    const Status status = is_raw ? check_raw(stored)
                          : crc32_z(0, bytes_.get(), stored.size) == stored.crc32 ? DECODED : BAD_CRC;
    if (status != DECODED) return status;
    __atomic_store_n(&shared.checked, 1, __ATOMIC_RELAXED);
  }
  resizer_.plan(row, call_->size);
  return is_raw ? decode_raw(stored, row, image) : decode_jpeg(stored, row, image);
}

// Check the CRC of all pixels; the crop may need only some of them.
Status Worker::check_raw(const StoredImage& stored) {
  reserve(READ_BYTES);
  uLong crc = 0;
  for (size_t done = 0, n; done < stored.size; done += n) {
    n = std::min<size_t>(READ_BYTES, stored.size - done);
    if (!read_at(call_->fd, bytes_.get(), n, stored.offset + done)) return SHORT_READ;
    crc = crc32_z(crc, bytes_.get(), n);
  }
  return crc == stored.crc32 ? DECODED : BAD_CRC;
}

// Decode raw pixels. Read them in strips of rows; the bytes between the needed pixels of two rows are read, too.
Status Worker::decode_raw(const StoredImage& stored, const CropRow& row, uint8_t* image) {
  const Axis &across = resizer_.across, &down = resizer_.down;
  const size_t stride = size_t(3) * stored.width, row_bytes = size_t(3) * (across.end - across.begin);
  resizer_.open(stride, 0, image);
  for (int y = down.begin; y < down.end; y += STRIP_ROWS) {
    const int num_rows = std::min(STRIP_ROWS, down.end - y);
    const uint64_t first = stored.offset + (row.top + y) * stride + size_t(3) * (row.left + across.begin);
    if (!read_at(call_->fd, resizer_.strip(0), (num_rows - 1) * stride + row_bytes, first)) return SHORT_READ;
    resizer_.push(num_rows);
  }
  return DECODED;
}

// Return the part of the image that must be decoded for a crop.
Box Worker::needed_box(const StoredImage& stored, const CropRow& row) const {
  const Axis &across = resizer_.across, &down = resizer_.down;
  const int top = std::max(0, row.top + down.begin - MARGIN);
  const int bottom = std::min<int>(stored.height, row.top + down.end + MARGIN);
  int left = std::max(0, row.left + across.begin - MARGIN);
  const int right = std::min<int>(stored.width, std::max(row.left + across.end + MARGIN, left + MIN_COLUMNS));
  left = std::max(0, std::min(left, right - MIN_COLUMNS));
  return {top, left, bottom - top, right - left};
}

Status Worker::decode_jpeg(const StoredImage& stored, const CropRow& row, uint8_t* image) {
  fill_room(bytes_.get() + stored.size);
  Jpeg source = {bytes_.get(), stored.size + ROOM_BYTES, 0, {0, 0, stored.height, stored.width}};
  const Box needed = needed_box(stored, row);
  const Box read = stored.thorough ? Box{0, 0, needed.top + needed.height, stored.width} : needed;
  if (splice_.cut(bytes_.get(), stored.size, stored.height, stored.width, read)) {
    source = {splice_.bytes(), splice_.size(), PADDING_BYTES, splice_.part};
  }
  if (setjmp(error_.escape)) {
    jpeg_destroy_decompress(&jpeg_);
    return error_.status;
  }
  try {
    // In files with CRCs, accept left-over bytes and missing scans. The file may have been packed by an older version,
    // which did not reject them.
    const Status status = read_jpeg(source, stored.thorough || !stored.has_crc, needed, row, image);
    jpeg_destroy_decompress(&jpeg_);
    return status;
  } catch (const std::bad_alloc&) {
    jpeg_destroy_decompress(&jpeg_);
    throw;
  }
}

// longjmp may leave this function: no local variable may have a destructor.
Status Worker::read_jpeg(const Jpeg& source, bool is_strict, const Box& needed, const CropRow& row, uint8_t* image) {
  jpeg_decompress_struct* jpeg = &jpeg_;
  const Box& part = source.part;
  jpeg->err = listen(&error_);
  error_.is_strict = is_strict;
  jpeg_create_decompress(jpeg);
  jpeg->mem->max_memory_to_use = MAX_COEFFICIENT_BYTES;
  jpeg_mem_src(jpeg, source.bytes, source.size);
  jpeg_read_header(jpeg, TRUE);
  if (jpeg->src->bytes_in_buffer < ROOM_BYTES) return BAD_JPEG;  // truncated header
  if (int64_t(jpeg->image_height) != part.height || int64_t(jpeg->image_width) != part.width) return BAD_SIZE;
  if (jpeg->num_components != 1 && jpeg->num_components != 3) return BAD_COLOURS;
  jpeg->out_color_space = JCS_RGB;
  jpeg->dct_method = JDCT_ISLOW;
  jpeg->do_fancy_upsampling = TRUE;
  jpeg->do_block_smoothing = FALSE;  // smoothing (for missing scans) would make pixels depend on the crop
  error_.is_in_scan = true;
  error_.padding = source.padding;
  jpeg_start_decompress(jpeg);
  if (is_strict && jpeg_has_multiple_scans(jpeg) && lacks_scans(*jpeg)) return MISSING_SCANS;

  const int first_row = row.top + resizer_.down.begin - part.top;
  const int first_column = row.left + resizer_.across.begin - part.left;
  JDIMENSION left = needed.left - part.left, width = needed.width;
  jpeg_crop_scanline(jpeg, &left, &width);
  if (first_row) jpeg_skip_scanlines(jpeg, first_row);

  resizer_.open(size_t(3) * jpeg->output_width, size_t(3) * (first_column - left), image);
  const int num_rows = resizer_.down.end - resizer_.down.begin;
  for (int y = 0; y < num_rows;) {
    const int wanted = std::min(STRIP_ROWS, num_rows - y);
    JSAMPROW rows[STRIP_ROWS];
    for (int i = 0; i < wanted; i++) rows[i] = resizer_.strip(i);
    for (int i = 0; i < wanted;) i += jpeg_read_scanlines(jpeg, rows + i, wanted - i);
    resizer_.push(wanted);
    y += wanted;
  }
  // Left-over bytes before the end marker are detected only when libjpeg reads the marker.
  if (jpeg->output_scanline == jpeg->output_height) jpeg_finish_decompress(jpeg);
  return DECODED;
}

void work(Call* call) { Worker(call).run(); }

}  // namespace

int vitkd_decode(int fd, StoredImage* table, int64_t num_images, const CropRow* rows, int64_t num_rows, int32_t size,
                 int32_t num_threads, const AugmentPlan* plan, uint8_t* images, int32_t* status,
                 int32_t vector_bytes) {
  struct stat file;
  if (vector_bytes == 0) vector_bytes = widest_vector();
  if (vector_bytes < 16 || vector_bytes > widest_vector()) return -1;
  if (size < 1 || size > MAX_SIZE || num_threads < 1 || num_images < 0 || num_rows < 0) return -1;
  const uint64_t file_size = fstat(fd, &file) == 0 ? uint64_t(file.st_size) : 0;
  Call call{fd, file_size, table, num_images, rows, num_rows, size, vector_bytes, plan, images, status};
  std::thread threads[MAX_THREADS];
  const int64_t num_helpers = std::min<int64_t>({num_threads, num_rows, MAX_THREADS}) - 1;
  try {
    for (int64_t i = 0; i < num_helpers; i++) threads[i] = std::thread(work, &call);
  } catch (const std::exception&) {  // cannot start more threads: those already running take all rows
  }
  work(&call);
  for (std::thread& thread : threads) {
    if (thread.joinable()) thread.join();
  }
  return 0;
}

int vitkd_widest_vector() { return widest_vector(); }

int vitkd_resize(const uint8_t* pixels, int32_t height, int32_t width, const CropRow* row, int32_t size,
                 int32_t vector_bytes, uint8_t* image) {
  if (size < 1 || size > MAX_SIZE || !row_is_valid(*row, height, width, size)) return BAD_ROW;
  if (vector_bytes > widest_vector()) return BAD_ROW;
  try {
    Resizer resizer(vector_bytes);
    resizer.plan(*row, size);
    const Axis &across = resizer.across, &down = resizer.down;
    const size_t stride = size_t(3) * width, row_bytes = size_t(3) * (across.end - across.begin);
    resizer.open(stride, 0, image);
    for (int y = down.begin; y < down.end; y += STRIP_ROWS) {
      const int num_rows = std::min(STRIP_ROWS, down.end - y);
      const uint8_t* first = pixels + (row->top + y) * stride + size_t(3) * (row->left + across.begin);
      std::memcpy(resizer.strip(0), first, (num_rows - 1) * stride + row_bytes);
      resizer.push(num_rows);
    }
    return DECODED;
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
}
