// libjpeg's messages: an error, or a warning that pixels were lost, leaves by longjmp.
#pragma once

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE

#include <jpeglib.h>

#include "decode.h"

constexpr long MAX_COEFFICIENT_BYTES = 1L << 29;  // a progressive JPEG is held whole: 89 megapixels in 4:4:4

// What a libjpeg object has as `err`. Its owner calls setjmp(escape); between that frame and libjpeg's own nothing may
// have a destructor.
struct ErrorManager {
  jpeg_error_mgr base;
  jmp_buf escape;
  Status status;     // why it was left
  bool is_in_scan;   // bytes that belong to nothing count as damage from here on; in the header they do no harm
  bool is_strict;    // whether such bytes are damage in an ordinary JPEG too
  int padding;       // bytes that stand before each restart marker and belong to nothing, see splice.h
  bool saw_padding;  // before the marker that comes next
};

// Make `error` ready and give what jpeg->err must be.
jpeg_error_mgr* listen(ErrorManager* error);
