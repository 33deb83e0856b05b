// Weighted sums of rows of bytes for resize.cpp, with the same bits for any vector width.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))

constexpr int WEIGHT_BITS = 22;  // 2**22 represents 1.0
// blend_pairs splits a weight into low + high * 2**15, so that each part fits into a signed 16-bit factor.
constexpr int LOW_BITS = 15;

// Weights of the input pixels of one output pixel. `whole` has the weights, with a 0 added if their number is odd.
// `pairs` has the same weights in the format of make_pair, for blend_pairs.
struct Weights {
  const int32_t *whole, *pairs;
  int count;
};

// Pack two weights: pair[0] gets their low parts, and pair[1] their high parts. The part of the first weight is in the
// lower 16 bits.
INLINE void make_pair(int32_t first, int32_t second, int32_t* pair) {
  const auto packed = [](int32_t a, int32_t b) { return int32_t(uint32_t(a & 0xFFFF) | uint32_t(b) << 16); };
  constexpr int32_t mask = (1 << LOW_BITS) - 1;
  pair[0] = packed(first & mask, second & mask);
  pair[1] = packed(first >> LOW_BITS, second >> LOW_BITS);
}

// Vector types of BYTES bytes; the compiler uses one register if the CPU has registers of this width.
template <int BYTES>
struct Vector {
  typedef uint32_t Lanes __attribute__((vector_size(BYTES)));
  typedef int32_t Sums __attribute__((vector_size(BYTES)));
  typedef uint64_t Words __attribute__((vector_size(BYTES)));
};

// out[i] = sum over k of weights[k] * in[k * stride + i], rounded and clipped, for i < BYTES.
//
// Each 32-bit lane holds four bytes. Shifts and masks extract the bytes, which are added to four sums. The results are
// packed in the same way. Compilers generate good code for shifts and masks, but not for conversions between types of
// different width.
template <int BYTES>
INLINE void blend_anywhere(uint8_t* out, const uint8_t* in, size_t stride, const Weights& weights) {
  using Lanes = typename Vector<BYTES>::Lanes;
  using Sums = typename Vector<BYTES>::Sums;
  const Sums half = Sums{} + (1 << (WEIGHT_BITS - 1)), black = {}, white = black + 255;
  Sums sums[4] = {half, half, half, half};
  for (int k = 0; k < weights.count; k++, in += stride) {
    Lanes lanes;
    std::memcpy(&lanes, in, BYTES);
    for (int i = 0; i < 4; i++) sums[i] += weights.whole[k] * Sums((lanes >> (8 * i)) & 255);
  }
  Lanes done = {};
  for (int i = 0; i < 4; i++) {
    Sums value = sums[i] >> WEIGHT_BITS;
    value = value < black ? black : value;
    value = value > white ? white : value;
    done |= Lanes(value) << (8 * i);
  }
  std::memcpy(out, &done, BYTES);
}

// Not for clang: it checks assembly operands against the target of the enclosing function, which is unknown here.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_BLEND_PAIRS
// AVX2 and AVX-512 instructions as inline assembly: intrinsics cannot be inlined into a template, which has no target
// attribute. Operands are references because compilers pass such vectors by value in different ways.
#define INSTRUCTION(name, text)                                \
  template <typename V>                                        \
  INLINE void name(V& c, const V& a, const V& b) {             \
    __asm__(text " %2, %1, %0" : "=v"(c) : "v"(a), "v"(b));    \
  }
INSTRUCTION(mix_low_bytes, "vpunpcklbw")  // a0 b0 a1 b1 ... within each 16 bytes
INSTRUCTION(mix_high_bytes, "vpunpckhbw")
INSTRUCTION(sum_products, "vpmaddwd")   // of neighbouring 16-bit numbers
INSTRUCTION(narrow_to_16, "vpackssdw")  // clips, and restores the order before mix_low_bytes and mix_high_bytes
INSTRUCTION(narrow_to_8, "vpackuswb")
#undef INSTRUCTION

INLINE void add_products(Vector<32>::Lanes& sum, const Vector<32>::Lanes& a, const Vector<32>::Lanes& b) {
  Vector<32>::Lanes products;
  sum_products(products, a, b);
  sum += products;
}
INLINE void add_products(Vector<64>::Lanes& sum, const Vector<64>::Lanes& a, const Vector<64>::Lanes& b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// Compute the same as blend_anywhere, two rows at a time, for wide vectors. The sums of the low parts may overflow
// 32 bits. This does no harm, because only the lower 32 bits of the total matter.
template <int BYTES>
INLINE void blend_pairs(uint8_t* out, const uint8_t* in, size_t stride, const Weights& weights) {
  using Lanes = typename Vector<BYTES>::Lanes;
  using Sums = typename Vector<BYTES>::Sums;
  const Lanes none = {}, half = none + (1 << (WEIGHT_BITS - 1));
  Lanes low[4] = {half, half, half, half}, high[4] = {}, mixed[2], bytes;
  for (int k = 0; k < weights.count; k += 2, in += 2 * stride) {
    const Lanes low_pair = none + uint32_t(weights.pairs[k]), high_pair = none + uint32_t(weights.pairs[k + 1]);
    Lanes first, second;
    std::memcpy(&first, in, BYTES);
    std::memcpy(&second, k + 1 < weights.count ? in + stride : in, BYTES);
    mix_low_bytes(mixed[0], first, second);
    mix_high_bytes(mixed[1], first, second);
    for (int i = 0; i < 4; i++) {
      i % 2 ? mix_high_bytes(bytes, mixed[i / 2], none) : mix_low_bytes(bytes, mixed[i / 2], none);
      add_products(low[i], bytes, low_pair);
      add_products(high[i], bytes, high_pair);
    }
  }
  for (int i = 0; i < 4; i++) low[i] = Lanes(Sums(low[i] + (high[i] << LOW_BITS)) >> WEIGHT_BITS);
  narrow_to_16(mixed[0], low[0], low[1]);
  narrow_to_16(mixed[1], low[2], low[3]);
  narrow_to_8(bytes, mixed[0], mixed[1]);
  std::memcpy(out, &bytes, BYTES);
}
#endif
