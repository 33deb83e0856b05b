// Assemble a new JPEG from the restart segments that cover a part of an image.
//
// A segment between two restart markers can be decoded without the bytes before it. If the restart interval divides
// the number of MCUs (minimum coded units of 8 x 8 to 32 x 32 pixels) in a row, the segments of a rectangle form a
// valid JPEG, after their markers are renumbered and the header gets the size of the rectangle. libjpeg then decodes
// the rectangle without reading anything around it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct Box {
  int top, left, height, width;
};

// Number of bytes of end markers that are appended to a JPEG. They complete a file that lacks only its end marker; if
// more is missing, libjpeg reports missing codes. They also keep libjpeg on its fast path, which needs 512 further
// bytes in its buffer for each block of an MCU (at most 10 blocks).
constexpr size_t ROOM_BYTES = 5120;
void fill_room(uint8_t* behind);
// Number of zero bytes to insert before each restart marker. libjpeg reads up to 8 bytes ahead; if it meets a marker
// there, it decodes the MCU again with slow code. libjpeg skips the zeros and reports their number. Any other number
// means that the segment was not decoded exactly to its last byte.
constexpr int PADDING_BYTES = 8;

class Splice {
 public:
  // Assemble the segments that cover `needed` from a JPEG of `size` bytes followed by an end marker. Return false if
  // the JPEG is not of the kind described above, or its markers are out of order; then libjpeg must get the whole file.
  bool cut(const uint8_t* jpeg, size_t size, int height, int width, const Box& needed);

  const uint8_t* bytes() const { return bytes_.data(); }
  size_t size() const { return end_; }

  Box part;  // position of the assembled JPEG in the whole image

 private:
  size_t copy_header(const uint8_t* jpeg, size_t size, int height, int width, const Box& needed);
  bool copy_segments(const uint8_t* scan, const uint8_t* end);
  void append(const uint8_t* bytes, size_t size);

  std::vector<uint8_t> bytes_;
  size_t end_ = 0;  // number of bytes used in bytes_
  int across_ = 0, down_ = 0;                   // number of segments of the whole image
  int first_column_ = 0, end_column_ = 0;       // range of needed segments
  int first_row_ = 0, end_row_ = 0;
};
