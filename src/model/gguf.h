// GGUF: one file with a model's metadata, vocabulary and (often quantized) tensors. Read only, by memory map.
//
// This is the container alone: keys and names are the file's own. open_gguf_weights() gives the model behind
// it under Hugging Face's names (weights.h). Source: the GGUF specification of the ggml project
// (docs/gguf.md), versions 2 and 3, little-endian.
//
// Ownership: the file owns the map; string_views and spans point into it.
// Threads: immutable after open, so any.
// Errors: kCorrupt or kInvalid with file, key or tensor, byte, and what to do; kNotFound for an absent key.
//
//   ASSIGN_OR_RETURN(GgufFile file, GgufFile::open("model.gguf"));
//   ASSIGN_OR_RETURN(std::string_view kind, file.string("tokenizer.ggml.model"));
//   ASSIGN_OR_RETURN(auto tokens, file.strings("tokenizer.ggml.tokens"));
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "kernels/dtype.h"
#include "model/weights.h"

namespace flywheel::model {

// The numbers are the file format's.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

struct GgufArray {
  GgufType element = GgufType::kU8;
  uint64_t count = 0;
  std::string_view raw;  // the elements as they lie in the file
};

struct GgufValue {
  GgufType type = GgufType::kU8;
  // Unsigned integers of every width as uint64_t, signed ones as int64_t, floats as double.
  std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray> value;
};

struct GgufTensor {
  std::string name;  // the file's: "blk.3.ffn_up.weight"
  kernels::DType dtype = kernels::DType::kF32;
  std::vector<int64_t> shape;  // outermost first (the file stores it innermost first)
  uint64_t offset = 0;         // from the start of the file
  std::span<const uint8_t> bytes;
};

class GgufFile {
 public:
  static Result<GgufFile> open(const std::string& path);
  // The same over bytes that the caller keeps alive; `name` is used in messages.
  static Result<GgufFile> parse(std::string_view bytes, const std::string& name);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in file order
  const GgufTensor* find_tensor(std::string_view name) const;

  bool has(std::string_view key) const { return metadata_.find(key) != metadata_.end(); }
  // One value; kNotFound without the key, kInvalid when it has another type or does not fit.
  Result<int64_t> integer(std::string_view key) const;
  Result<double> number(std::string_view key) const;  // float or integer
  Result<bool> boolean(std::string_view key) const;
  Result<std::string_view> string(std::string_view key) const;
  Result<std::vector<std::string_view>> strings(std::string_view key) const;
  Result<std::vector<int64_t>> integers(std::string_view key) const;
  Result<std::vector<float>> floats(std::string_view key) const;

 private:
  friend class GgufParser;
  Result<const GgufValue*> get(std::string_view key) const;
  Error wrong_type(std::string_view key, const GgufValue& value, const char* wanted) const;

  std::string path_;
  MappedFile map_;
  uint32_t version_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_index_;
};

const char* gguf_type_name(GgufType type);

// The model in a GGUF file: tensors under Hugging Face's names, attention rows in Hugging Face's order.
// Architectures: llama (Llama 2 and 3, SmolLM2, Mistral), qwen2, qwen3.
Result<std::unique_ptr<WeightSource>> open_gguf_weights(const std::string& path);

}  // namespace flywheel::model
