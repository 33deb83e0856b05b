// Error handling for libjpeg: errors, and warnings about lost pixels, leave libjpeg by longjmp.
#pragma once

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE

#include <jpeglib.h>

#include "decode.h"

constexpr long MAX_COEFFICIENT_BYTES = 1L << 29;  // all coefficients of a progressive JPEG: 89 megapixels in 4:4:4

// Error manager, the `err` of a libjpeg object. The object's owner calls setjmp(escape). No frame between that one
// and libjpeg may have objects with destructors.
struct ErrorManager {
  jpeg_error_mgr base;
  jmp_buf escape;
  Status status;     // reason for the longjmp
  bool is_in_scan;   // after the header; extraneous bytes are harmless in the header, but may be damage in a scan
  bool is_strict;    // whether extraneous bytes also count as damage in a JPEG without padding
  int padding;       // expected number of extraneous bytes before each restart marker, see splice.h
  bool saw_padding;  // whether they were seen before the next marker
};

// Initialise `error` and return the value for jpeg->err.
jpeg_error_mgr* listen(ErrorManager* error);
