// A part of a JPEG as a JPEG of its own, made of the segments between restart markers that the part needs.
//
// What stands between two restart markers depends on no bit before it. So where the interval of the markers divides a
// row of MCUs (the blocks that belong together, 8 x 8 to 32 x 32 pixels), the segments of a rectangle, their markers
// numbered anew, behind a header with the rectangle's size, are a JPEG again: libjpeg decodes it without reading a bit
// of what lies around it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct Box {
  int top, left, height, width;
};

// Bytes of end markers that are put behind a JPEG. With them a file that lacks nothing but its own is whole, and any
// other lack shows as missing codes; and libjpeg decodes an MCU slowly where its buffer ends within 512 bytes for each of
// at most 10 blocks.
constexpr size_t ROOM_BYTES = 5120;
void fill_room(uint8_t* behind);
// Zeros before each restart marker. libjpeg reads up to 8 bytes ahead, and decodes an MCU again, and slowly, where it
// meets a marker there. It skips them, and says how many bytes it skipped: another number means that the segment was
// not decoded to its last byte, or beyond it.
constexpr int PADDING_BYTES = 8;

class Splice {
 public:
  // Cut out of a JPEG of `size` bytes, behind which an end marker stands, the segments that cover `needed`. False where
  // it is not of the kind described above, or its markers are not in order: it must be decoded as it is.
  bool cut(const uint8_t* jpeg, size_t size, int height, int width, const Box& needed);

  const uint8_t* bytes() const { return bytes_.data(); }
  size_t size() const { return end_; }

  Box part;  // where the pixels of what was cut out lie in the whole

 private:
  size_t copy_header(const uint8_t* jpeg, size_t size, int height, int width, const Box& needed);
  bool copy_segments(const uint8_t* scan, const uint8_t* end);
  void append(const uint8_t* bytes, size_t size);

  std::vector<uint8_t> bytes_;
  size_t end_ = 0;  // of what is in bytes_
  int across_ = 0, down_ = 0;                   // segments of the whole
  int first_column_ = 0, end_column_ = 0;       // segments that are needed
  int first_row_ = 0, end_row_ = 0;
};
