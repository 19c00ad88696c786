// Every quantized type in every instruction set: values against the formats' own package, products against
// f64, and the same bits whatever the variant, the batch and the number of threads.
#include "kernels/quant.h"

#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <sstream>

#include "base/file.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"
#include "kernels/quant_pack_internal.h"
#include "kernels/random_test_internal.h"

namespace flywheel::kernels {
namespace {

std::vector<DType> quantized_types() {
  std::vector<DType> all;
  for (int i = 0; i < kQuantTypes; ++i)
    all.push_back(static_cast<DType>(static_cast<int>(kFirstQuantized) + i));
  return all;
}

// Any bits, but for the f16 scales, which are small numbers.
std::vector<uint8_t> random_rows(RandomInput& random, DType dtype, int64_t N, int64_t K) {
  std::vector<uint8_t> bytes(static_cast<size_t>(N * row_bytes(dtype, K)));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.integer(0, 255));
  const int64_t size = block_bytes(dtype);
  std::vector<int64_t> places = {0};
  if (dtype == DType::kQ4_1 || dtype == DType::kQ5_1 || dtype == DType::kQ4_K || dtype == DType::kQ5_K)
    places = {0, 2};
  if (dtype == DType::kQ2_K) places = {80, 82};
  if (dtype == DType::kQ3_K) places = {108};
  if (dtype == DType::kQ6_K) places = {208};
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(size)) {
    for (const int64_t place : places) {
      const uint16_t scale = to_f16(random.normal(1, 0.01f)[0]);
      std::memcpy(&bytes[at + static_cast<size_t>(place)], &scale, 2);
    }
  }
  return bytes;
}

// x as the kernels see it: blocks of 32 in int8 steps of max|x| / 127.
std::vector<double> seen(const std::vector<float>& x) {
  std::vector<double> out(x.size());
  for (size_t b = 0; b < x.size(); b += 32) {
    float most = 0;
    for (size_t i = b; i < b + 32; ++i) most = std::max(most, std::abs(x[i]));
    for (size_t i = b; i < b + 32 && most > 0; ++i) {
      out[i] = std::nearbyint(x[i] * (127.0f / most)) * static_cast<double>(most / 127.0f);
    }
  }
  return out;
}

std::vector<double> product(const std::vector<double>& x, const std::vector<float>& w, int64_t M, int64_t N,
                            int64_t K) {
  std::vector<double> y(static_cast<size_t>(M * N));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k)
        sum += x[static_cast<size_t>(m * K + k)] * w[static_cast<size_t>(n * K + k)];
      y[static_cast<size_t>(m * N + n)] = sum;
    }
  }
  return y;
}

struct Weight {
  DType dtype;
  int64_t N, K;
  std::vector<uint8_t> rows, storage;
  std::vector<float> values;
  uint8_t* packed = nullptr;
};

Weight random_weight(RandomInput& random, DType dtype, int64_t N, int64_t K, ThreadPool& pool) {
  Weight w{dtype, N, K, random_rows(random, dtype, N, K)};
  w.storage.resize(static_cast<size_t>(quant_packed_bytes(dtype, N, K)) + 64);
  w.packed = w.storage.data() + 64 - reinterpret_cast<uintptr_t>(w.storage.data()) % 64;
  quant_pack(w.packed, dtype, w.rows.data(), N, K, pool);
  w.values.resize(static_cast<size_t>(N * K));
  for (int64_t n = 0; n < N; ++n) {
    dequantize_row(w.values.data() + n * K, dtype, w.rows.data() + n * row_bytes(dtype, K), K);
  }
  return w;
}

std::vector<float> multiply(const Weight& w, const std::vector<float>& x, ThreadPool& pool) {
  const int64_t M = static_cast<int64_t>(x.size()) / w.K;
  std::vector<float> y(static_cast<size_t>(M * w.N), std::numeric_limits<float>::quiet_NaN());
  quant_linear(y.data(), x.data(), w.dtype, w.packed, M, w.N, w.K, pool);
  return y;
}

TEST(Quant, ValuesAreThoseOfTheFormatsPackage) {
  std::ifstream golden(std::string(FLYWHEEL_ROOM_DIR) + "/testdata/quant_golden.txt");
  const auto from_hex = [](const std::string& hex) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    return bytes;
  };
  std::string name, block_hex, values_hex;
  int blocks = 0;
  for (; golden >> name >> block_hex >> values_hex; ++blocks) {
    const DType dtype = dtype_from_name(name).value();
    const std::vector<uint8_t> block = from_hex(block_hex), values = from_hex(values_hex);
    ASSERT_EQ(static_cast<int64_t>(block.size()), block_bytes(dtype)) << name;
    std::vector<float> got(static_cast<size_t>(block_elements(dtype))), want(got.size());
    ASSERT_EQ(values.size(), want.size() * 4);
    std::memcpy(want.data(), values.data(), values.size());
    dequantize_row(got.data(), dtype, block.data(), block_elements(dtype));
    EXPECT_EQ(got, want) << name;
  }
  EXPECT_EQ(blocks, 2 * kQuantTypes);
}

TEST(Quant, ProductsAgreeWithF64) {
  ThreadPool pool(2);
  RandomInput random;
  for (const DType dtype : quantized_types()) {
    const int64_t K = block_elements(dtype) * random.integer(1, 5), N = random.integer(1, 70),
                  M = random.integer(1, 21);
    SCOPED_TRACE(fmt::format("{} M {} N {} K {}", dtype_name(dtype), M, N, K));
    const Weight w = random_weight(random, dtype, N, K, pool);
    const std::vector<float> x = random.normal(M * K);
    const std::vector<double> exact = product(seen(x), w.values, M, N, K);
    const std::vector<double> ideal = product(widen(x), w.values, M, N, K);
    FOR_EACH_ISA {
      const std::vector<float> y = multiply(w, x, pool);
      EXPECT_LT(worst_error(y, exact), 2e-5);
      EXPECT_LT(worst_error(y, ideal),
                0.1);  // 8-bit inputs: about 0.5% of a typical output, ten times at worst
    }
  }
}

TEST(Quant, BitsDependOnNothingButTheRow) {
  ThreadPool one(1), two(2);
  RandomInput random;
  for (const DType dtype : quantized_types()) {
    const int64_t K = 512, N = random.integer(17, 90), M = 77;
    SCOPED_TRACE(fmt::format("{} N {}", dtype_name(dtype), N));
    const Weight w = random_weight(random, dtype, N, K, two);
    const std::vector<float> x = random.normal(M * K);
    const std::vector<float> y = multiply(w, x, one);
    FOR_EACH_ISA {
      EXPECT_EQ(multiply(w, x, two), y);
      for (int round = 0; round < 6; ++round) {
        const int64_t first = random.integer(0, M - 1), count = random.integer(1, M - first);
        const std::vector<float> some(x.begin() + first * K, x.begin() + (first + count) * K);
        EXPECT_EQ(multiply(w, some, two),
                  std::vector<float>(y.begin() + first * N, y.begin() + (first + count) * N));
      }
    }
  }
}

TEST(Quant, LinearAndEmbeddingTakeQuantizedWeights) {
  ThreadPool pool(2);
  RandomInput random;
  const Weight w = random_weight(random, DType::kQ4_K, 33, 256, pool);
  const PackedWeight packed = PackedWeight::pack(w.dtype, w.rows.data(), w.N, w.K, pool);
  const std::vector<float> x = random.normal(3 * w.K);
  std::vector<float> y(static_cast<size_t>(3 * w.N));
  linear(y.data(), x.data(), packed, 3, pool);
  EXPECT_EQ(y, multiply(w, x, pool));
  const std::vector<int32_t> ids = {32, 0, 5};
  std::vector<float> rows(static_cast<size_t>(3 * w.K));
  embedding(rows.data(), ids.data(), w.dtype, w.rows.data(), 3, w.N, w.K, pool);
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_EQ(rows[i], w.values[static_cast<size_t>(ids[i / 256]) * 256 + i % 256]);
  }
}

TEST(Quant, ExtremeInputs) {
  ThreadPool pool(1);
  RandomInput random;
  for (const DType dtype : quantized_types()) {
    SCOPED_TRACE(dtype_name(dtype));
    Weight w = random_weight(random, dtype, 20, 256, pool);
    FOR_EACH_ISA {
      EXPECT_EQ(multiply(w, std::vector<float>(256, 0.0f), pool), std::vector<float>(20, 0.0f));
      for (const float bad :
           {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        std::vector<float> x = random.normal(512);
        x[static_cast<size_t>(random.integer(0, 255))] = bad;
        const std::vector<float> y = multiply(w, x, pool);
        for (size_t n = 0; n < 20; ++n) {
          EXPECT_TRUE(std::isnan(y[n])) << "a bad input was lost";
          EXPECT_TRUE(std::isfinite(y[20 + n])) << "a bad input reached another row";
        }
      }
      // The largest integers that a block can meet: no sum may overflow.
      const std::vector<float> ones(256, 1.0f), minus(256, -1.0f);
      EXPECT_LT(worst_error(multiply(w, ones, pool), product(widen(ones), w.values, 1, 20, 256)), 1e-4);
      EXPECT_LT(worst_error(multiply(w, minus, pool), product(widen(minus), w.values, 1, 20, 256)), 1e-4);
    }
  }
}

TEST(Quant, LargestWeightsDoNotOverflow) {
  ThreadPool pool(1);
  for (const int fill : {0x00, 0xff, 0x80, 0x7f}) {
    for (const DType dtype : {DType::kQ8_0, DType::kQ5_1, DType::kQ4_1, DType::kQ4_0}) {
      std::vector<uint8_t> row(static_cast<size_t>(row_bytes(dtype, 64)), static_cast<uint8_t>(fill));
      for (size_t at = 0; at < row.size(); at += static_cast<size_t>(block_bytes(dtype))) {
        row[at] = 0, row[at + 1] = 0x3c;  // d = 1
        if (quant_format(dtype).has_min) row[at + 2] = 0, row[at + 3] = 0;
      }
      std::vector<float> values(64);
      dequantize_row(values.data(), dtype, row.data(), 64);
      alignas(64) uint8_t packed[4096];
      ASSERT_LE(quant_packed_bytes(dtype, 1, 64), 4096);
      quant_pack(packed, dtype, row.data(), 1, 64, pool);
      double sum = 0;
      for (const float v : values) sum += v;
      FOR_EACH_ISA {
        for (const float sign : {1.0f, -1.0f}) {
          const std::vector<float> x(64, sign * 127.0f);
          float y = 0;
          quant_linear(&y, x.data(), dtype, packed, 1, 1, 64, pool);
          EXPECT_EQ(y, sign * 127.0f * static_cast<float>(sum)) << dtype_name(dtype) << " " << fill;
        }
      }
    }
  }
}

}  // namespace
}  // namespace flywheel::kernels
