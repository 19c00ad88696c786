// The loop of collectives_reduce.h over vectors of kWidth f32 lanes, compiled once for each instruction set.
// Everything is in an unnamed namespace: each copy must stay with the flags of the file that includes it.
#pragma once

#include <cstring>
#include <type_traits>

#include "runtime/collectives.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace flywheel::runtime {
namespace {

template <typename T, int kWidth>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kWidth)));
};
template <typename T, int kWidth>
using Vector = typename VectorOf<T, kWidth>::type;

// How an element is stored (Stored), what it is reduced as (Value), and the way between.
template <typename T>
struct Plain {  // f32, and integers as unsigned: their sums wrap
  using Stored = T;
  using Value = T;
  template <int kWidth>
  static Vector<T, kWidth> widen(Vector<T, kWidth> v) {
    return v;
  }
  template <int kWidth>
  static Vector<T, kWidth> narrow(Vector<T, kWidth> v) {
    return v;
  }
};

struct BFloat16 {
  using Stored = uint16_t;
  using Value = float;
  template <int kWidth>
  static Vector<float, kWidth> widen(Vector<uint16_t, kWidth> v) {
    return (Vector<float, kWidth>)(__builtin_convertvector(v, Vector<uint32_t, kWidth>) << 16);
  }
  template <int kWidth>
  static Vector<uint16_t, kWidth> narrow(Vector<float, kWidth> v) {
    const auto bits = (Vector<uint32_t, kWidth>)v;
    const auto rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const auto quiet_nan = (bits >> 16) | 0x40u;
    // NOLINTNEXTLINE(misc-redundant-expression): lanes that are NaN
    return __builtin_convertvector(v != v ? quiet_nan : rounded, Vector<uint16_t, kWidth>);
  }
};

struct Half {
  using Stored = uint16_t;
  using Value = float;
  template <int kWidth>
  static Vector<float, kWidth> widen(Vector<uint16_t, kWidth> v) {
#if defined(__AVX512F__)  // maskz: GCC 12 warns of the plain form's own undefined operand
    if constexpr (kWidth == 16) return (Vector<float, 16>)_mm512_maskz_cvtph_ps(0xFFFF, (__m256i)v);
#endif
#if defined(__F16C__)
    if constexpr (kWidth == 8) return (Vector<float, 8>)_mm256_cvtph_ps((__m128i)v);
#endif
    Vector<float, kWidth> wide;
    for (int i = 0; i < kWidth; ++i) {
      _Float16 half;
      const uint16_t bits = v[i];
      memcpy(&half, &bits, 2);
      wide[i] = static_cast<float>(half);
    }
    return wide;
  }
  template <int kWidth>
  static Vector<uint16_t, kWidth> narrow(Vector<float, kWidth> v) {
#if defined(__AVX512F__)
    if constexpr (kWidth == 16) {
      return (Vector<uint16_t, 16>)_mm512_maskz_cvtps_ph(0xFFFF, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
    }
#endif
#if defined(__F16C__)
    if constexpr (kWidth == 8) {
      return (Vector<uint16_t, 8>)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
    }
#endif
    Vector<uint16_t, kWidth> narrow;
    for (int i = 0; i < kWidth; ++i) {
      const auto half = static_cast<_Float16>(v[i]);
      uint16_t bits;
      memcpy(&bits, &half, 2);
      narrow[i] = bits;
    }
    return narrow;
  }
};

template <Reduce kReduce, typename Signed, typename V>
V combine(V left, V right) {
  if constexpr (kReduce == Reduce::kSum) return left + right;
  // A NaN on the left stays; one on the right fails both comparisons and is taken.
  // NOLINTBEGIN(misc-redundant-expression): lanes that are NaN
  const auto a = (Signed)left, b = (Signed)right;
  if constexpr (kReduce == Reduce::kMax) return ((a > b) | (a != a)) ? left : right;
  return ((a < b) | (a != a)) ? left : right;
  // NOLINTEND(misc-redundant-expression)
}

template <typename Format, Reduce kReduce, int kWidth, int kRanks>  // kRanks 0: any number
void reduce_loop(void* out, void* also, const void* const* in, int n, int64_t count) {
  using Stored = typename Format::Stored;
  using Value = typename Format::Value;
  using SignedValue =
      std::conditional_t<std::is_floating_point_v<Value>, Value,
                         std::make_signed_t<std::conditional_t<std::is_floating_point_v<Value>, int, Value>>>;
  using V = Vector<Value, kWidth>;
  using S = Vector<Stored, kWidth>;
  const int ranks = kRanks > 0 ? kRanks : n;
  const auto reduce_at = [&](int64_t i, size_t bytes) {
    const auto load = [&](int rank) {
      S stored{};
      memcpy(&stored, static_cast<const Stored*>(in[rank]) + i, bytes);
      return Format::template widen<kWidth>(stored);
    };
    V total = load(0);
    for (int rank = 1; rank < ranks; ++rank) {
      total = combine<kReduce, Vector<SignedValue, kWidth>>(total, load(rank));
    }
    const S stored = Format::template narrow<kWidth>(total);
    memcpy(static_cast<Stored*>(out) + i, &stored, bytes);
    if (also != nullptr) memcpy(static_cast<Stored*>(also) + i, &stored, bytes);
  };
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) reduce_at(i, sizeof(S));
  if (i < count) reduce_at(i, static_cast<size_t>(count - i) * sizeof(Stored));
}

template <typename Format, int kWidth>
void reduce_as(Reduce reduce, void* out, void* also, const void* const* in, int n, int64_t count) {
  const auto run = [&]<Reduce kReduce>() {
    if (n == 2) return reduce_loop<Format, kReduce, kWidth, 2>(out, also, in, n, count);
    return reduce_loop<Format, kReduce, kWidth, 0>(out, also, in, n, count);
  };
  switch (reduce) {
    case Reduce::kSum:
      return run.template operator()<Reduce::kSum>();
    case Reduce::kMax:
      return run.template operator()<Reduce::kMax>();
    case Reduce::kMin:
      return run.template operator()<Reduce::kMin>();
  }
}

template <int kWidth>
void reduce_elements(Element element, Reduce reduce, void* out, void* also, const void* const* in, int n,
                     int64_t count) {
  switch (element) {
    case Element::kF32:
      return reduce_as<Plain<float>, kWidth>(reduce, out, also, in, n, count);
    case Element::kBF16:
      return reduce_as<BFloat16, kWidth>(reduce, out, also, in, n, count);
    case Element::kF16:
      return reduce_as<Half, kWidth>(reduce, out, also, in, n, count);
    case Element::kI32:
      return reduce_as<Plain<uint32_t>, kWidth>(reduce, out, also, in, n, count);
    case Element::kI64:
      return reduce_as<Plain<uint64_t>, kWidth / 2>(reduce, out, also, in, n, count);
  }
}

}  // namespace
}  // namespace flywheel::runtime
