// Error handling for libjpeg: on an error or a warning that means lost pixels, longjmp leaves libjpeg.
#pragma once

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE

#include <jpeglib.h>

#include "decode.h"

constexpr long MAX_COEFFICIENT_BYTES = 1L << 29;  // all coefficients of a progressive JPEG: 89 megapixels in 4:4:4

// Error manager, to which `err` of a libjpeg object points. The function that owns this object calls setjmp(escape).
// The functions between it and libjpeg must not have local objects with destructors.
struct ErrorManager {
  jpeg_error_mgr base;
  jmp_buf escape;
  Status status;     // reason for the longjmp
  bool is_in_scan;   // whether the header has been read; extraneous bytes are harmless only in the header
  bool is_strict;    // whether extraneous bytes also count as damage in a JPEG without padding
  int padding;       // expected number of extraneous bytes before each restart marker, see splice.h
  bool saw_padding;  // whether these bytes were seen since the last restart marker
};

// Initialise `error` and return the value for jpeg->err.
jpeg_error_mgr* listen(ErrorManager* error);
