// The integer side of lanes_internal.h: 16 lanes of int32, each fed 4 unsigned weight bytes and 4 signed
// input bytes at a time. One specialization for each instruction set, with the same functions:
//
//   W            64 bytes of weights, 4 for each lane
//   I            16 int32 sums
//   dot          sums += weight bytes (unsigned, below 64) * the 4 bytes at x
//   dot_bytes    the same for all 8-bit weights; they come with an offset of 128 where kSignedBytes is false,
//                and signed where it is true
//   quantize16   16 floats times `inverse`, rounded to nearest even; returns their sum
//   max_bits32   the largest magnitude of 32 floats as bits: a NaN is larger than all
#pragma once

#include <cmath>

#include "kernels/lanes_internal.h"

namespace flywheel::kernels {

template <typename L>
struct QuantLanes;

#if defined(__AVX512F__)
template <>
struct QuantLanes<Avx512> {
  using W = __m512i;
  using I = __m512i;
  static constexpr int kRows = 8;  // input rows that share one pass over the weights
  static constexpr bool kSignedBytes = false;

  LANES_INLINE W load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int bits>
  LANES_INLINE W shift_right(W w) {
    return _mm512_srli_epi16(w, bits);
  }
  template <int bits>
  LANES_INLINE W shift_left(W w) {
    return _mm512_slli_epi16(w, bits);
  }
  LANES_INLINE W mask(W w, int byte) {
    return _mm512_and_si512(w, _mm512_set1_epi8(static_cast<char>(byte)));
  }
  LANES_INLINE W either(W a, W b) { return _mm512_or_si512(a, b); }
  LANES_INLINE W as_signed(W w) { return w; }
  LANES_INLINE I set1(int32_t x) { return _mm512_set1_epi32(x); }
  LANES_INLINE I dot(I sums, W w, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(four));
  }
  LANES_INLINE I dot_bytes(I sums, W w, const int8_t* x) { return dot(sums, w, x); }
  LANES_INLINE __m512 to_float(I sums) { return _mm512_cvtepi32_ps(sums); }
  LANES_INLINE __m512 load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  LANES_INLINE int32_t quantize16(int8_t* out, const float* x, float inverse) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(q));
    return _mm512_reduce_add_epi32(q);
  }
  LANES_INLINE uint32_t max_bits32(const float* x) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    return static_cast<uint32_t>(
        _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x), magnitude),
                                                 _mm512_and_si512(_mm512_loadu_si512(x + 16), magnitude))));
  }
};
#elif defined(__AVX2__)
template <>
struct QuantLanes<Avx2> {
  struct W {
    __m256i v[2];
  };
  using I = W;
  static constexpr int kRows = 4;
  static constexpr bool kSignedBytes = true;  // unsigned bytes above 64 would overflow the pairwise sums

#define EACH(expression)                             \
  {                                                  \
    W r;                                             \
    for (int i = 0; i < 2; ++i) r.v[i] = expression; \
    return r;                                        \
  }
  LANES_INLINE W load(const uint8_t* p) EACH(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i));
  template <int bits>
  LANES_INLINE W shift_right(W w) EACH(_mm256_srli_epi16(w.v[i], bits));
  template <int bits>
  LANES_INLINE W shift_left(W w) EACH(_mm256_slli_epi16(w.v[i], bits));
  LANES_INLINE W mask(W w, int byte)
      EACH(_mm256_and_si256(w.v[i], _mm256_set1_epi8(static_cast<char>(byte))));
  LANES_INLINE W either(W a, W b) EACH(_mm256_or_si256(a.v[i], b.v[i]));
  LANES_INLINE W as_signed(W w) EACH(_mm256_xor_si256(w.v[i], _mm256_set1_epi8(-128)));
  LANES_INLINE I set1(int32_t x) EACH(_mm256_set1_epi32(x));
  LANES_INLINE I dot(I sums, W w, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    const __m256i inputs = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    EACH(_mm256_add_epi32(sums.v[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w.v[i], inputs), ones)));
  }
  // |w| * (x with w's sign): 128 * 127 * 2 still fits 16 bits.
  LANES_INLINE I dot_bytes(I sums, W w, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    const __m256i inputs = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    EACH(_mm256_add_epi32(sums.v[i], _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w.v[i]),
                                                                            _mm256_sign_epi8(inputs, w.v[i])),
                                                       ones)));
  }
#undef EACH
  LANES_INLINE Avx2::F to_float(I sums) {
    Avx2::F r;
    for (int i = 0; i < 2; ++i) r.v[i] = _mm256_cvtepi32_ps(sums.v[i]);
    return r;
  }
  LANES_INLINE Avx2::F load_i8(const int8_t* p) {
    Avx2::F r;
    for (int i = 0; i < 2; ++i) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i));
      r.v[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    return r;
  }
  LANES_INLINE int32_t quantize16(int8_t* out, const float* x, float inverse) {
    const __m256 scale = _mm256_set1_ps(inverse);
    const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), scale));
    const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), scale));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    const __m256i sum8 = _mm256_add_epi32(a, b);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sum8), _mm256_extracti128_si256(sum8, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }
  LANES_INLINE uint32_t max_bits32(const float* x) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * i));
      most = _mm256_max_epi32(most, _mm256_and_si256(bits, magnitude));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1))));
  }
};
#else
template <>
struct QuantLanes<Baseline> {
  struct W {
    uint8_t v[64];
  };
  struct I {
    int32_t v[16];
  };
  static constexpr int kRows = 1;
  static constexpr bool kSignedBytes = false;

  LANES_INLINE W load(const uint8_t* p) {
    W w;
    std::memcpy(&w, p, sizeof w);
    return w;
  }
  template <int bits>
  LANES_INLINE W shift_right(W w) {
    for (auto& b : w.v) b = static_cast<uint8_t>(b >> bits);
    return w;
  }
  template <int bits>
  LANES_INLINE W shift_left(W w) {
    for (auto& b : w.v) b = static_cast<uint8_t>(b << bits);
    return w;
  }
  LANES_INLINE W mask(W w, int byte) {
    for (auto& b : w.v) b = static_cast<uint8_t>(b & byte);
    return w;
  }
  LANES_INLINE W either(W a, W b) {
    for (int i = 0; i < 64; ++i) a.v[i] |= b.v[i];
    return a;
  }
  LANES_INLINE W as_signed(W w) { return w; }
  LANES_INLINE I set1(int32_t x) {
    I r;
    for (auto& v : r.v) v = x;
    return r;
  }
  LANES_INLINE I dot(I sums, W w, const int8_t* x) {
    for (int r = 0; r < 16; ++r) {
      const uint8_t* four = w.v + 4 * r;
      sums.v[r] += (four[0] * x[0] + four[1] * x[1]) + (four[2] * x[2] + four[3] * x[3]);
    }
    return sums;
  }
  LANES_INLINE I dot_bytes(I sums, W w, const int8_t* x) { return dot(sums, w, x); }
  LANES_INLINE Baseline::F to_float(I sums) {
    Baseline::F r;
    for (int i = 0; i < 16; ++i) r.v[i / 4][i % 4] = static_cast<float>(sums.v[i]);
    return r;
  }
  LANES_INLINE Baseline::F load_i8(const int8_t* p) {
    Baseline::F r;
    for (int i = 0; i < 16; ++i) r.v[i / 4][i % 4] = static_cast<float>(p[i]);
    return r;
  }
  LANES_INLINE int32_t quantize16(int8_t* out, const float* x, float inverse) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) {
      const long q = __builtin_lrintf(x[i] * inverse);
      out[i] = static_cast<int8_t>(q);
      sum += static_cast<int32_t>(q);
    }
    return sum;
  }
  LANES_INLINE uint32_t max_bits32(const float* x) {
    uint32_t most = 0;
    for (int i = 0; i < 32; ++i) {
      const uint32_t bits = bits_of(x[i]) & 0x7fffffff;
      most = bits > most ? bits : most;
    }
    return most;
  }
};
#endif

}  // namespace flywheel::kernels
