#include "splice.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr uint8_t SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, RST0 = 0xD0, SOI = 0xD8, EOI = 0xD9, SOS = 0xDA, DQT = 0xDB,
                  DRI = 0xDD, APP0 = 0xE0, APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE;

int big_endian(const uint8_t* bytes) { return bytes[0] << 8 | bytes[1]; }

int ceil_div(int value, int by) { return (value + by - 1) / by; }

// Read the MCU size in pixels of a single-scan JPEG from its frame header; return false if the header is invalid.
bool find_mcu(const uint8_t* frame, int length, int* width, int* height) {
  const int num_components = frame[9];
  if (length != 8 + 3 * num_components || (num_components != 1 && num_components != 3)) return false;
  *width = *height = 8;  // with one component, sampling factors do not matter
  for (int i = 0; i < num_components && num_components > 1; i++) {
    const int across = frame[11 + 3 * i] >> 4, down = frame[11 + 3 * i] & 15;
    if (across < 1 || across > 4 || down < 1 || down > 4) return false;
    *width = std::max(*width, 8 * across), *height = std::max(*height, 8 * down);
  }
  return true;
}

}  // namespace

void fill_room(uint8_t* behind) {
  for (size_t i = 0; i < ROOM_BYTES; i += 2) behind[i] = 0xFF, behind[i + 1] = EOI;
}

void Splice::append(const uint8_t* bytes, size_t size) {
  std::memcpy(bytes_.data() + end_, bytes, size);
  end_ += size;
}

bool Splice::cut(const uint8_t* jpeg, size_t size, int height, int width, const Box& needed) {
  end_ = 0;
  if (bytes_.size() < size) bytes_.resize(size);
  const size_t scan = copy_header(jpeg, size, height, width, needed);
  if (!scan) return false;
  // A segment has at least two bytes (its marker), so a file cannot make us allocate more than five times its size.
  const size_t num_segments = size_t(end_row_ - first_row_) * (end_column_ - first_column_);
  const size_t room = end_ + size + PADDING_BYTES * std::min(num_segments, size / 2 + 1) + ROOM_BYTES;
  if (bytes_.size() < room) bytes_.resize(room);
  return copy_segments(jpeg + scan, jpeg + size + 2);
}

// Copy the header segments that affect pixels, with the part's size in the frame header. Return the position of the
// scan, or 0 if this kind of JPEG cannot be spliced.
size_t Splice::copy_header(const uint8_t* jpeg, size_t size, int height, int width, const Box& needed) {
  int interval = 0, num_components = 0, mcu_width = 0, mcu_height = 0;
  size_t size_at = 0;  // position of height and width in the copy
  if (size < 4 || jpeg[0] != 0xFF || jpeg[1] != SOI) return 0;
  append(jpeg, 2);
  for (size_t at = 2; at + 4 <= size;) {
    const uint8_t* marker = jpeg + at;
    const uint8_t code = marker[1];
    const int length = big_endian(marker + 2);
    if (marker[0] != 0xFF || length < 2 || at + 2 + length > size) return 0;
    if (code == SOF0 || code == SOF1) {
      if (num_components || length < 11 || !find_mcu(marker, length, &mcu_width, &mcu_height)) return 0;
      if (marker[4] != 8 || big_endian(marker + 5) != height || big_endian(marker + 7) != width) return 0;
      num_components = marker[9];
      size_at = end_ + 5;
    } else if (code == DRI) {
      if (length != 4) return 0;
      interval = big_endian(marker + 4);
    } else if (code == SOS) {
      if (!num_components || length != 6 + 2 * num_components || marker[4] != num_components) return 0;
    } else if (code != DHT && code != DQT && code != COM && (code < APP0 || code > APP15)) {
      return 0;
    }
    const bool is_needed = code != COM && (code <= APP0 || code == APP14);  // these two define the colour space
    if (is_needed) append(marker, 2 + length);
    at += 2 + length;
    if (code != SOS) continue;

    const int row_mcus = ceil_div(width, mcu_width);
    if (!interval || row_mcus % interval) return 0;
    const int segment_width = interval * mcu_width;
    across_ = row_mcus / interval, down_ = ceil_div(height, mcu_height);
    first_column_ = needed.left / segment_width, end_column_ = ceil_div(needed.left + needed.width, segment_width);
    first_row_ = needed.top / mcu_height, end_row_ = ceil_div(needed.top + needed.height, mcu_height);
    part.left = first_column_ * segment_width, part.width = std::min(width, end_column_ * segment_width) - part.left;
    part.top = first_row_ * mcu_height, part.height = std::min(height, end_row_ * mcu_height) - part.top;
    const uint8_t patched[4] = {uint8_t(part.height >> 8), uint8_t(part.height), uint8_t(part.width >> 8),
                                uint8_t(part.width)};
    std::memcpy(bytes_.data() + size_at, patched, 4);
    return at;
  }
  return 0;
}

// Walk through the segments up to the last needed one, and copy the needed ones. `end` is after the end marker that
// fill_room appended to the file.
bool Splice::copy_segments(const uint8_t* scan, const uint8_t* end) {
  const int64_t num_segments = int64_t(across_) * down_;
  const int num_needed = (end_row_ - first_row_) * (end_column_ - first_column_);
  int64_t number = 0;
  int row = 0, column = 0, num_copied = 0;
  // The last segment gets no padding: libjpeg would decode missing codes from the zeros.
  const uint8_t* first = scan;
  for (const uint8_t* at = scan;;) {
    at = static_cast<const uint8_t*>(std::memchr(at, 0xFF, end - 1 - at));
    if (!at) return false;
    const uint8_t code = at[1];
    if (code == 0) {  // an escaped 0xFF byte
      at += 2;
      continue;
    }
    if (code != (++number == num_segments ? EOI : RST0 + ((number - 1) & 7))) return false;
    if (row >= first_row_ && column >= first_column_ && column < end_column_) {
      append(first, at - first);
      if (++num_copied == num_needed) break;
      const uint8_t marker[PADDING_BYTES + 2] = {0, 0, 0, 0, 0, 0, 0, 0, 0xFF, uint8_t(RST0 + ((num_copied - 1) & 7))};
      append(marker, sizeof marker);
    }
    if (++column == across_) column = 0, row++;
    first = at += 2;
  }
  fill_room(bytes_.data() + end_);
  end_ += ROOM_BYTES;
  return true;
}
