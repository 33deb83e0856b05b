// Re-encode a JPEG as one baseline scan with restart markers; coefficients and pixels stay the same.
#include <cstdlib>

#include "errors.h"

#include <jerror.h>

namespace {

// Desired width of a segment. Crops skip whole segments, so short segments decode faster, but each segment adds bytes.
// On 500-px photos, segments of half this width decode 3 % faster and need 2 % more bytes
// (benchmarks/restart_interval.py).
constexpr int SEGMENT_PIXELS = 32;

struct Transcoder {
  jpeg_decompress_struct in = {};
  jpeg_compress_struct out = {};
  jpeg_destination_mgr destination = {};
  ErrorManager error = {};

  ~Transcoder() {
    jpeg_destroy_decompress(&in);
    jpeg_destroy_compress(&out);
  }
  uint64_t run(const uint8_t* jpeg, uint64_t size, uint8_t* written, uint64_t capacity);
};

void do_nothing(j_compress_ptr) {}

boolean give_up_as_full(j_compress_ptr jpeg) {
  ERREXIT(jpeg, JERR_BUFFER_SIZE);
  return FALSE;
}

// longjmp may leave this function: no local variable may have a destructor.
uint64_t Transcoder::run(const uint8_t* jpeg, uint64_t size, uint8_t* written, uint64_t capacity) {
  in.err = out.err = listen(&error);
  if (setjmp(error.escape)) return 0;
  jpeg_create_decompress(&in);
  jpeg_create_compress(&out);
  in.mem->max_memory_to_use = MAX_COEFFICIENT_BYTES;
  jpeg_mem_src(&in, jpeg, size);
  jpeg_read_header(&in, TRUE);
  error.is_in_scan = true;
  jvirt_barray_ptr* coefficients = jpeg_read_coefficients(&in);
  jpeg_copy_critical_parameters(&in, &out);
  const int mcu_width = 8 * (in.num_components == 1 ? 1 : in.max_h_samp_factor);
  out.restart_interval = vitkd_restart_interval(in.image_width, mcu_width);
  out.optimize_coding = TRUE;
  destination.next_output_byte = written;
  destination.free_in_buffer = capacity;
  destination.init_destination = destination.term_destination = do_nothing;
  destination.empty_output_buffer = give_up_as_full;
  out.dest = &destination;
  jpeg_write_coefficients(&out, coefficients);
  jpeg_finish_compress(&out);
  return capacity - destination.free_in_buffer;
}

}  // namespace

int32_t vitkd_restart_interval(int32_t width, int32_t mcu_width) {
  const int row_mcus = (width + mcu_width - 1) / mcu_width;
  int best = 1;
  for (int interval = 1; interval <= row_mcus; interval++) {
    const int pixels = interval * mcu_width, best_pixels = best * mcu_width;
    const bool is_nearer = pixels <= SEGMENT_PIXELS || pixels * best_pixels < SEGMENT_PIXELS * SEGMENT_PIXELS;
    if (row_mcus % interval == 0 && is_nearer) best = interval;
  }
  return best;
}

uint64_t vitkd_transcode(const uint8_t* jpeg, uint64_t size, uint8_t* written, uint64_t capacity) {
  return capacity ? Transcoder().run(jpeg, size, written, capacity) : 0;  // libjpeg writes before it checks
}
