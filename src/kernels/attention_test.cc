#include "kernels/attention.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "kernels/attention_test_internal.h"
#include "kernels/random_test_internal.h"

namespace flywheel::kernels {
namespace {

using Case = AttentionCase;

// A cache filled with NaNs (what was there before must not matter) and a shuffled block table.
struct Cache {
  Cache(const KvLayout& layout, int64_t T, RandomInput& random)
      : layout(layout), table(static_cast<size_t>(T / kKvBlockTokens + 2)) {
    std::iota(table.begin(), table.end(), 0);
    for (size_t i = table.size(); i > 1; --i) {
      std::swap(table[i - 1], table[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
    }
    bytes.assign(table.size() * static_cast<size_t>(layout.block_bytes()), 0xff);
  }
  KvLayout layout;
  std::vector<int32_t> table;
  std::vector<uint8_t> bytes;
};

const Case kCases[] = {{1, 1, 1, 8, 0},   {5, 2, 1, 6, 0},    {17, 4, 2, 16, 0}, {47, 6, 2, 24, 0},
                       {70, 3, 3, 64, 0}, {100, 8, 2, 80, 0}, {64, 4, 4, 32, 9}, {90, 6, 3, 16, 33}};

TEST(Attention, ForwardAndBackwardAgreeWithF64) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    for (const Case& c : kCases) {
      for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        RandomInput random;
        const auto q = random.normal(c.T * c.heads * c.head_dim),
                   dout = random.normal(c.T * c.heads * c.head_dim);
        const auto k = rounded(random.normal(c.T * c.kv_heads * c.head_dim), dtype);
        const auto v = rounded(random.normal(c.T * c.kv_heads * c.head_dim), dtype);
        Cache cache({dtype, c.kv_heads, c.head_dim}, c.T, random);
        const AttentionSequence whole{cache.table.data(), 0, c.T, 0};
        const AttentionShape shape{c.heads, 1.0f / std::sqrt(static_cast<float>(c.head_dim)), c.window};
        std::vector<float> out(q.size()), lse(static_cast<size_t>(c.T * c.heads));
        kv_write(cache.bytes.data(), cache.layout, k.data(), v.data(), {&whole, 1}, pool);
        attention(out.data(), lse.data(), q.data(), cache.bytes.data(), cache.layout, shape, {&whole, 1},
                  pool);
        const AttentionReference want = attention_reference(q, k, v, dout, c, shape.scale);
        EXPECT_LT(worst_error(out, want.out), 1e-5)
            << "T " << c.T << " D " << c.head_dim << " " << dtype_name(dtype);

        std::vector<float> dq(q.size()), dk(k.size()), dv(v.size());
        attention_backward(dq.data(), dk.data(), dv.data(), dout.data(), q.data(), k.data(), v.data(),
                           out.data(), lse.data(), {&whole, 1}, c.kv_heads, c.head_dim, shape, pool);
        EXPECT_LT(worst_error(dv, want.dv), 2e-5) << "T " << c.T;
        if (c.T > 1) {  // a single token's scores have no gradient
          EXPECT_LT(worst_error(dq, want.dq), 2e-5) << "T " << c.T;
          EXPECT_LT(worst_error(dk, want.dk), 2e-5) << "T " << c.T;
        }
      }
    }
  }
}

// Samples of several lengths in one row of tokens: outputs and gradients of each have the bits that it has
// alone, whatever its neighbours hold.
TEST(Attention, PackedSamplesHaveTheBitsOfEachAlone) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      RandomInput random;
      const int64_t H = 6, G = 2, D = 24, row = H * D, kv_row = G * D;
      const std::vector<int64_t> lengths = {1, random.integer(2, 15), 16, random.integer(17, 50)};
      const int64_t T = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
      const auto q = random.normal(T * row), dout = random.normal(T * row);
      const auto k = rounded(random.normal(T * kv_row), dtype), v = rounded(random.normal(T * kv_row), dtype);
      const AttentionShape shape{H, 0.2f, random.integer(0, 1) * 9};
      const auto run = [&](std::span<const AttentionSequence> sequences, Cache& cache) {
        std::vector<float> out(q.size()), lse(static_cast<size_t>(T * H)), dq(q.size()), dk(k.size()),
            dv(v.size());
        kv_write(cache.bytes.data(), cache.layout, k.data(), v.data(), sequences, pool);
        attention(out.data(), lse.data(), q.data(), cache.bytes.data(), cache.layout, shape, sequences, pool);
        attention_backward(dq.data(), dk.data(), dv.data(), dout.data(), q.data(), k.data(), v.data(),
                           out.data(), lse.data(), sequences, G, D, shape, pool);
        return std::vector{out, dq, dk, dv};
      };
      Cache cache({dtype, G, D}, T + 16 * std::ssize(lengths), random);
      std::vector<AttentionSequence> packed;
      int64_t at = 0, block = 0;
      for (const int64_t length : lengths) {
        packed.push_back({cache.table.data() + block, at, length, 0});
        at += length, block += (length + kKvBlockTokens - 1) / kKvBlockTokens;
      }
      const auto together = run(packed, cache);
      for (const AttentionSequence& sample : packed) {
        Cache own({dtype, G, D}, sample.tokens, random);
        const AttentionSequence single{own.table.data(), sample.first_row, sample.tokens, 0};
        const auto alone = run({&single, 1}, own);
        for (size_t part = 0; part < alone.size(); ++part) {
          const int64_t width = part < 2 ? row : kv_row;
          const auto begin = alone[part].begin() + sample.first_row * width;
          EXPECT_TRUE(std::equal(begin, begin + sample.tokens * width,
                                 together[part].begin() + sample.first_row * width))
              << "part " << part << " of a sample of " << sample.tokens;
        }
      }
    }
  }
}

// However a prompt is cut into chunks, and whoever else is in the batch, a token's output has the same bits.
TEST(Attention, ChunksAndCompanyChangeNoBit) {
  ThreadPool one(1), two(2);
  FOR_EACH_ISA {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      RandomInput random;
      const int64_t T = random.integer(60, 90), H = 6, G = 2, D = 40, row = H * D, kv_row = G * D;
      const auto q = random.normal(2 * T * row), k = random.normal(2 * T * kv_row),
                 v = random.normal(2 * T * kv_row);
      const AttentionShape shape{H, 0.2f, random.integer(0, 1) * 37};
      Cache whole_cache({dtype, G, D}, 2 * T + 32, random);
      const auto half = static_cast<int64_t>(whole_cache.table.size() / 2);
      const AttentionSequence both[] = {{whole_cache.table.data(), 0, T, 0},
                                        {whole_cache.table.data() + half, T, T, 0}};
      std::vector<float> together(q.size());
      kv_write(whole_cache.bytes.data(), whole_cache.layout, k.data(), v.data(), both, two);
      attention(together.data(), nullptr, q.data(), whole_cache.bytes.data(), whole_cache.layout, shape, both,
                two);

      Cache cache({dtype, G, D}, T, random);
      std::vector<float> chunked(static_cast<size_t>(T * row));
      for (int64_t t = 0; t < T;) {
        const int64_t n = std::min(T - t, random.integer(1, 30));
        const AttentionSequence chunk{cache.table.data(), t, n, t};
        kv_write(cache.bytes.data(), cache.layout, k.data(), v.data(), {&chunk, 1}, one);
        attention(chunked.data(), nullptr, q.data(), cache.bytes.data(), cache.layout, shape, {&chunk, 1},
                  one);
        t += n;
      }
      EXPECT_EQ(0, std::memcmp(chunked.data(), together.data(), chunked.size() * 4));
    }
  }
}

// A sequence's keys in blocks with a cache each, taken in any order that gives each row one of its keys
// first: out, lse and gradients are those of one cache. Block lengths need not be whole tiles.
TEST(Attention, BlocksOfKeysMergeIntoTheWhole) {
  ThreadPool pool(2);
  FOR_EACH_ISA {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      RandomInput random;
      const int64_t B = 2, pieces = 4, n = random.integer(1, 40), T = pieces * n;
      const int64_t G = random.integer(1, 2), H = G * random.integer(1, 3), D = random.integer(1, 20) * 2;
      const int64_t window = random.integer(0, 1) * random.integer(1, T);
      const AttentionShape shape{H, 1.0f / std::sqrt(static_cast<float>(D)), window};
      SCOPED_TRACE(::testing::Message() << "pieces of " << n << " D " << D << " window " << window);
      const auto q = random.normal(B * T * H * D), dout = random.normal(B * T * H * D);
      const auto k = rounded(random.normal(B * T * G * D), dtype),
                 v = rounded(random.normal(B * T * G * D), dtype);
      std::vector<float> out(q.size()), lse(static_cast<size_t>(B * T * H)), dq(q.size()), dk(k.size()),
          dv(v.size());
      const auto sequences_of = [&](const Cache& cache, int64_t queries, int64_t keys) {
        std::vector<AttentionSequence> sequences;
        const auto blocks = static_cast<int64_t>(cache.table.size()) / B;
        for (int64_t b = 0; b < B; ++b) {
          sequences.push_back({.block_table = cache.table.data() + b * blocks,
                               .first_row = b * T + queries * n,
                               .tokens = n,
                               .position = (queries - keys) * n,
                               .keys = n,
                               .softmax = queries == keys ? Softmax::kBegins : Softmax::kGoesOn});
        }
        return sequences;
      };
      std::vector<std::unique_ptr<Cache>> caches;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        caches.push_back(std::make_unique<Cache>(KvLayout{dtype, G, D}, B * (n + 16), random));
        const Cache& cache = *caches.back();
        kv_write(caches.back()->bytes.data(), cache.layout, k.data(), v.data(),
                 sequences_of(cache, piece, piece), pool);
      }
      for (int64_t queries = 0; queries < pieces; ++queries) {
        std::vector<int64_t> order{queries};
        const int64_t turn = random.integer(0, pieces);
        for (int64_t i = 0; i < pieces; ++i) {
          if ((i + turn) % pieces < queries) order.push_back((i + turn) % pieces);
        }
        for (const int64_t keys : order) {
          const Cache& cache = *caches[static_cast<size_t>(keys)];
          attention(out.data(), lse.data(), q.data(), cache.bytes.data(), cache.layout, shape,
                    sequences_of(cache, queries, keys), pool);
        }
      }
      for (int64_t queries = 0; queries < pieces; ++queries) {
        for (int64_t keys = 0; keys <= queries; ++keys) {
          std::vector<AttentionBlock> blocks;
          for (int64_t b = 0; b < B; ++b)
            blocks.push_back({b * T + queries * n, b * T + keys * n, n, n, (queries - keys) * n});
          attention_backward_blocks(dq.data(), dk.data(), dv.data(), dout.data(), q.data(), k.data(),
                                    v.data(), out.data(), lse.data(), blocks, G, D, shape, pool);
        }
      }
      const auto sequence = [&](const std::vector<float>& x, int64_t b) {
        const auto each = static_cast<int64_t>(x.size()) / B;
        return std::vector<float>(x.begin() + b * each, x.begin() + (b + 1) * each);
      };
      for (int64_t b = 0; b < B; ++b) {
        const AttentionReference want =
            attention_reference(sequence(q, b), sequence(k, b), sequence(v, b), sequence(dout, b),
                                {T, H, G, D, window}, shape.scale);
        EXPECT_LT(worst_error(sequence(out, b), want.out), 2e-5);
        EXPECT_LT(worst_error(sequence(dv, b), want.dv), 4e-5);
        if (window == 1) continue;  // scores of a single key have no gradient
        EXPECT_LT(worst_error(sequence(dq, b), want.dq), 4e-5);
        EXPECT_LT(worst_error(sequence(dk, b), want.dk), 4e-5);
      }
    }
  }
}

}  // namespace
}  // namespace flywheel::kernels
