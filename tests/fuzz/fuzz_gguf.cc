// GGUF: whatever the bytes, parsing ends with a value or an error, and every tensor lies inside the file. A
// file that is a tokenizer encodes and decodes.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "fuzzer.h"
#include "model/gguf.h"
#include "model/gguf_writer_for_tests.h"
#include "model/tokenizer.h"

using flywheel::model::GgufFile;
using flywheel::model::GgufType;
using flywheel::model::GgufWriterForTests;

namespace {

std::vector<std::string> seeds() {
  std::vector<std::string> all;
  for (const uint32_t version : {2u, 3u}) {
    GgufWriterForTests w(version, version == 2 ? 64 : 32);
    w.string("general.architecture", "llama").u32("llama.block_count", 2).f32("llama.rope.freq_base", 1e4f);
    w.boolean("tokenizer.ggml.add_bos_token", true);
    w.array<uint16_t>("small", GgufType::kU16, {1, 65535});
    w.tensor_f32("output_norm.weight", {3}, {1, 2, 3});
    w.tensor("blk.0.attn_q.weight", flywheel::kernels::DType::kQ8_0, {2, 32}, std::string(68, '\x11'));
    all.push_back(w.finish());
  }
  for (const char* kind : {"llama", "gpt2"}) {
    GgufWriterForTests w;
    w.string("general.architecture", "llama").string("tokenizer.ggml.model", kind);
    w.strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "a", "b", "ab", "\xE2\x96\x81", "<0x41>"});
    w.array<float>("tokenizer.ggml.scores", GgufType::kF32, {0, 0, 0, -1, -1, -0.5f, -2, 0});
    w.array<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {2, 3, 3, 1, 1, 1, 1, 6});
    w.strings("tokenizer.ggml.merges", {"a b"});
    w.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
    all.push_back(w.finish());
  }
  return all;
}

void run(std::string_view input) {
  const auto file = GgufFile::parse(input, "fuzz");
  if (!file.ok()) return;
  for (const auto& [key, value] : file->metadata()) {
    (void)file->strings(key).ok();
    (void)file->integers(key).ok();
    (void)file->floats(key).ok();
  }
  const auto* end = reinterpret_cast<const uint8_t*>(input.data() + input.size());
  for (const auto& tensor : file->tensors()) {
    CHECK(tensor.bytes.data() + tensor.bytes.size() <= end, "{} ends behind the file", tensor.name);
  }
  const auto tokenizer = flywheel::model::Tokenizer::from_gguf(*file);
  if (tokenizer.ok()) (void)tokenizer->decode(tokenizer->encode("ab Hello\n1"));
}

const FuzzerRegistration registration("gguf", seeds, run);

}  // namespace
