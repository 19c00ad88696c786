#include "model/gguf.h"

#include <gtest/gtest.h>

#include "base/env.h"
#include "base/philox.h"
#include "model/gguf_writer_for_tests.h"

namespace flywheel::model {
namespace {

using kernels::DType;

std::string small_file(uint32_t version = 3, uint64_t alignment = 32) {
  GgufWriterForTests w(version, alignment);
  w.string("general.architecture", "llama").u32("llama.block_count", 2).f32("llama.rope.freq_base", 1e4f);
  w.boolean("tokenizer.ggml.add_bos_token", true);
  w.strings("tokenizer.ggml.tokens", {"<s>", "a", "", "\xe3\x81\x82"});
  w.array<float>("tokenizer.ggml.scores", GgufType::kF32, {0, -1.5f, 2, 3});
  w.array<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {3, 1, 1, -1});
  w.array<uint16_t>("small", GgufType::kU16, {1, 65535});
  w.tensor_f32("output_norm.weight", {3}, {1, 2, 3});
  w.tensor("blk.0.attn_q.weight", DType::kQ8_0, {2, 32}, std::string(68, '\x11'));
  w.tensor("blk.1.ffn_up.weight", DType::kQ4_K, {1, 256}, std::string(144, '\x22'));
  return w.finish();
}

TEST(Gguf, ReadsMetadataOfEveryKind) {
  for (const uint32_t version : {2u, 3u}) {
    const std::string bytes = small_file(version);
    const GgufFile file = GgufFile::parse(bytes, "t.gguf").value();
    EXPECT_EQ(file.version(), version);
    EXPECT_EQ(file.string("general.architecture").value(), "llama");
    EXPECT_EQ(file.integer("llama.block_count").value(), 2);
    EXPECT_EQ(file.number("llama.rope.freq_base").value(), 1e4);
    EXPECT_EQ(file.number("llama.block_count").value(), 2.0);
    EXPECT_TRUE(file.boolean("tokenizer.ggml.add_bos_token").value());
    EXPECT_EQ(file.strings("tokenizer.ggml.tokens").value(),
              (std::vector<std::string_view>{"<s>", "a", "", "\xe3\x81\x82"}));
    EXPECT_EQ(file.floats("tokenizer.ggml.scores").value(), (std::vector<float>{0, -1.5f, 2, 3}));
    EXPECT_EQ(file.integers("tokenizer.ggml.token_type").value(), (std::vector<int64_t>{3, 1, 1, -1}));
    EXPECT_EQ(file.integers("small").value(), (std::vector<int64_t>{1, 65535}));
  }
}

TEST(Gguf, PlacesTensorsAtTheFilesAlignment) {
  for (const uint64_t alignment : {8u, 32u, 4096u}) {
    const std::string bytes = small_file(3, alignment);
    const GgufFile file = GgufFile::parse(bytes, "t.gguf").value();
    ASSERT_EQ(file.tensors().size(), 3u);
    const GgufTensor* q = file.find_tensor("blk.0.attn_q.weight");
    ASSERT_NE(q, nullptr);
    EXPECT_EQ(q->shape, (std::vector<int64_t>{2, 32}));
    EXPECT_EQ(q->offset % alignment, 0u);
    EXPECT_EQ(q->bytes.size(), 68u);
    EXPECT_EQ(q->bytes.front(), 0x11);
    float norm[3];
    std::memcpy(norm, file.find_tensor("output_norm.weight")->bytes.data(), sizeof norm);
    EXPECT_EQ(norm[2], 3.0f);
    EXPECT_EQ(file.find_tensor("nothing"), nullptr);
  }
}

TEST(Gguf, ErrorsSayWhatAndWhere) {
  const std::string bytes = small_file();
  const GgufFile file = GgufFile::parse(bytes, "t.gguf").value();
  EXPECT_EQ(file.string("none").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(file.integer("general.architecture").error().message,
            "t.gguf: metadata key general.architecture is string, not an integer");
  EXPECT_EQ(file.floats("tokenizer.ggml.tokens").error().message,
            "t.gguf: metadata key tokenizer.ggml.tokens is an array of string, not an array of floats");

  const auto message = [](const std::string& b) { return GgufFile::parse(b, "t.gguf").error().message; };
  EXPECT_NE(message(bytes.substr(0, bytes.size() - 64)).find("tensor blk.1.ffn_up.weight ends at byte"),
            std::string::npos);
  EXPECT_NE(message("PK\x03\x04 and so on").find("not a GGUF file"), std::string::npos);
  EXPECT_NE(message("").find("cut short"), std::string::npos);
  std::string big_endian = bytes;
  std::swap(big_endian[4], big_endian[7]);
  EXPECT_NE(message(big_endian).find("big-endian"), std::string::npos);
  GgufWriterForTests twice;
  twice.u32("a", 1).u32("a", 2);
  EXPECT_NE(message(twice.finish()).find("a second time"), std::string::npos);
  GgufWriterForTests odd;
  odd.tensor("w", DType::kQ4_K, {1, 32}, std::string(144, 'x'));
  EXPECT_NE(message(odd.finish()).find("no whole q4_k blocks of 256"), std::string::npos);
}

// Whatever the bytes, parsing ends with a value or an error, and what it returns lies inside the file.
void survive(const std::string& bytes) {
  auto parsed = GgufFile::parse(bytes, "fuzz.gguf");
  if (!parsed.ok()) {
    EXPECT_NE(parsed.error().message.find("fuzz.gguf: "), std::string::npos);
    return;
  }
  for (const auto& [key, value] : parsed->metadata()) {
    (void)parsed->strings(key).ok();
    (void)parsed->floats(key).ok();
    (void)parsed->integers(key).ok();
  }
  const auto* end = reinterpret_cast<const uint8_t*>(bytes.data()) + bytes.size();
  for (const GgufTensor& tensor : parsed->tensors()) {
    ASSERT_LE(tensor.bytes.data() + tensor.bytes.size(), end);
    if (!tensor.bytes.empty()) (void)(tensor.bytes.front() + tensor.bytes.back());
  }
}

TEST(Gguf, MutatedFilesNeverCrash) {
  const std::string original = small_file();
  Philox rng(7);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = original;
    for (uint64_t n = 1 + rng.below(4); n > 0; --n) {
      const size_t at = rng.below(bytes.size());
      switch (rng.below(4)) {
        case 0:
          bytes[at] = static_cast<char>(rng.next_u32());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
          break;
        case 2: {  // a length or offset that tries to overflow
          const uint64_t extreme = ~uint64_t{0} >> rng.below(64);
          if (at + 8 <= bytes.size()) std::memcpy(bytes.data() + at, &extreme, 8);
          break;
        }
        default:
          bytes.resize(1 + rng.below(bytes.size()));
          break;
      }
    }
    survive(bytes);
  }
}

TEST(Gguf, EveryPrefixIsRefused) {
  const std::string original = small_file();
  for (size_t n = 0; n + 32 < original.size(); ++n) {
    EXPECT_FALSE(GgufFile::parse(std::string_view(original).substr(0, n), "t.gguf").ok()) << n;
  }
}

TEST(Gguf, ReadsRealVocabularies) {
  const std::string folder = env::test_data();
  if (folder.empty()) GTEST_SKIP() << "no test data; set FLYWHEEL_TEST_DATA";
  const GgufFile file = GgufFile::open(folder + "/tokenizers/golden/ggml-vocab-llama-spm.gguf").value();
  EXPECT_EQ(file.string("tokenizer.ggml.model").value(), "llama");
  EXPECT_EQ(file.strings("tokenizer.ggml.tokens").value().size(), 32000u);
  EXPECT_EQ(file.strings("tokenizer.ggml.tokens").value()[1], "<s>");
  EXPECT_EQ(file.floats("tokenizer.ggml.scores").value().size(), 32000u);
}

}  // namespace
}  // namespace flywheel::model
