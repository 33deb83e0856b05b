// Weighted sums of rows of bytes, exact to the last bit in any width of vectors: the arithmetic of resize.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))

constexpr int WEIGHT_BITS = 22;  // 2**22 is one
// A weight is also low + high * 2**15, of which each part fits into the signed 16 bits that blend_pairs multiplies by.
constexpr int LOW_BITS = 15;

// The weights of the input pixels of one output pixel; behind an odd number of them stands 0. `pairs` holds the same
// for blend_pairs, two numbers for two neighbours, see make_pair.
struct Weights {
  const int32_t *whole, *pairs;
  int count;
};

// The low parts of two weights, the first in the lower half, and their high parts.
INLINE void make_pair(int32_t first, int32_t second, int32_t* pair) {
  const auto packed = [](int32_t a, int32_t b) { return int32_t(uint32_t(a & 0xFFFF) | uint32_t(b) << 16); };
  constexpr int32_t mask = (1 << LOW_BITS) - 1;
  pair[0] = packed(first & mask, second & mask);
  pair[1] = packed(first >> LOW_BITS, second >> LOW_BITS);
}

// A vector of BYTES bytes, which the compiler makes one register of where the CPU has such.
template <int BYTES>
struct Vector {
  typedef uint32_t Lanes __attribute__((vector_size(BYTES)));
  typedef int32_t Sums __attribute__((vector_size(BYTES)));
  typedef uint64_t Words __attribute__((vector_size(BYTES)));
};

// out[i] = sum over k of weights[k] * in[k * stride + i], rounded and clipped, for BYTES bytes i.
//
// Bytes stay in their 32-bit lane: the four of a lane go into four sums, by shift and mask, and come back the same way.
// Any compiler makes good code of that, which cannot be said of widening and narrowing.
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

// clang takes an operand of an instruction for one of the enclosing function's target, which is not known here.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_BLEND_PAIRS
// Instructions of AVX2 and AVX-512 as functions for both: an intrinsic could not be inlined into a template, which has
// no target of its own. Operands go by reference, as compilers disagree on how such vectors are passed.
#define INSTRUCTION(name, text)                                \
  template <typename V>                                        \
  INLINE void name(V& c, const V& a, const V& b) {             \
    __asm__(text " %2, %1, %0" : "=v"(c) : "v"(a), "v"(b));    \
  }
INSTRUCTION(mix_low_bytes, "vpunpcklbw")  // a0 b0 a1 b1 ... of each 16 bytes
INSTRUCTION(mix_high_bytes, "vpunpckhbw")
INSTRUCTION(sum_products, "vpmaddwd")   // of two neighbours of 16 bits
INSTRUCTION(narrow_to_16, "vpackssdw")  // clips; undoes the order of the two that mix
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

// The same for wide vectors, two rows at a time. The sums of the low parts alone may need more than 32 bits, of which
// the lower 32 are all that counts.
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
