// Error handlers for libjpeg.
#include "errors.h"

#include <jerror.h>

namespace {

ErrorManager* manager(j_common_ptr jpeg) { return reinterpret_cast<ErrorManager*>(jpeg->err); }

Status status_of(int code) {
  switch (code) {
    case JERR_OUT_OF_MEMORY:
    case JERR_NO_BACKING_STORE:
      return NO_MEMORY;
    case JERR_SOF_UNSUPPORTED:
    case JERR_BAD_PRECISION:
    case JERR_ARITH_NOTIMPL:
    case JERR_NOTIMPL:  // libjpeg-turbo 3 decodes lossless JPEGs, but cannot crop them
      return UNKNOWN_KIND;
    default:
      return BAD_JPEG;
  }
}

[[noreturn]] void give_up(j_common_ptr jpeg) {
  manager(jpeg)->status = status_of(jpeg->err->msg_code);
  std::longjmp(manager(jpeg)->escape, 1);
}

// libjpeg calls this for warnings (level -1), some of which are harmless, and for traces (level 0 and above), such as
// restart markers.
void give_up_if_pixels_are_lost(j_common_ptr jpeg, int) {
  ErrorManager* error = manager(jpeg);
  switch (jpeg->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_MUST_RESYNC:
    case JWRN_BOGUS_PROGRESSION:
    case JWRN_TOO_MUCH_DATA:  // a bug of ours, which would otherwise loop forever
      give_up(jpeg);
    case JWRN_EXTRANEOUS_DATA:  // its parameter is the number of bytes between the last code and the marker
      if (error->is_in_scan && jpeg->err->msg_parm.i[0] != error->padding && (error->padding || error->is_strict)) {
        give_up(jpeg);
      }
      error->saw_padding = true;
      break;
    case JTRC_RST:
      if (error->padding && !error->saw_padding) give_up(jpeg);
      error->saw_padding = false;
      break;
  }
}

void print_nothing(j_common_ptr) {}

}  // namespace

jpeg_error_mgr* listen(ErrorManager* error) {
  jpeg_std_error(&error->base);
  error->base.error_exit = give_up;
  error->base.emit_message = give_up_if_pixels_are_lost;
  error->base.output_message = print_nothing;
  error->is_in_scan = error->saw_padding = false;
  error->is_strict = true;
  error->padding = 0;
  return &error->base;
}
