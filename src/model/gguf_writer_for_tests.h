// Makes small GGUF files in memory for tests: the product only reads them.
//
//   GgufWriterForTests w;
//   w.string("general.architecture", "llama").u32("llama.block_count", 1);
//   w.tensor("blk.0.attn_q.weight", kernels::DType::kQ8_0, {rows, cols}, bytes);
//   std::string file = w.finish();
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/dtype.h"
#include "model/gguf.h"

namespace flywheel::model {

class GgufWriterForTests {
 public:
  explicit GgufWriterForTests(uint32_t version = 3, uint64_t alignment = 32)
      : version_(version), alignment_(alignment) {
    if (alignment != 32) u32("general.alignment", static_cast<uint32_t>(alignment));
  }

  GgufWriterForTests& u32(const std::string& key, uint32_t value) {
    return scalar(key, GgufType::kU32, value);
  }
  GgufWriterForTests& f32(const std::string& key, float value) { return scalar(key, GgufType::kF32, value); }
  GgufWriterForTests& boolean(const std::string& key, bool value) {
    return scalar(key, GgufType::kBool, static_cast<uint8_t>(value));
  }
  GgufWriterForTests& string(const std::string& key, const std::string& text) {
    begin(key, GgufType::kString);
    put_string(metadata_, text);
    return *this;
  }
  GgufWriterForTests& strings(const std::string& key, const std::vector<std::string>& all) {
    begin_array(key, GgufType::kString, all.size());
    for (const std::string& text : all) put_string(metadata_, text);
    return *this;
  }
  template <typename T>
  GgufWriterForTests& array(const std::string& key, GgufType element, const std::vector<T>& all) {
    begin_array(key, element, all.size());
    for (const T value : all) put(metadata_, value);
    return *this;
  }
  GgufWriterForTests& tensor(const std::string& name, kernels::DType dtype, const std::vector<int64_t>& shape,
                             const std::string& bytes) {
    static constexpr uint32_t kNumbers[] = {0, 1, 30, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14};
    put_string(infos_, name);
    put(infos_, static_cast<uint32_t>(shape.size()));
    for (auto it = shape.rbegin(); it != shape.rend(); ++it) put(infos_, static_cast<uint64_t>(*it));
    put(infos_, kNumbers[static_cast<size_t>(dtype)]);
    put(infos_, static_cast<uint64_t>(data_.size()));
    data_ += bytes;
    data_.resize((data_.size() + alignment_ - 1) / alignment_ * alignment_);
    ++tensors_;
    return *this;
  }
  GgufWriterForTests& tensor_f32(const std::string& name, const std::vector<int64_t>& shape,
                                 const std::vector<float>& values) {
    return tensor(name, kernels::DType::kF32, shape,
                  std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  }

  std::string finish() const {
    std::string file = "GGUF";
    put(file, version_);
    put(file, tensors_);
    put(file, keys_);
    file += metadata_ + infos_;
    file.resize((file.size() + alignment_ - 1) / alignment_ * alignment_);
    return file + data_;
  }

 private:
  template <typename T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void put_string(std::string& out, const std::string& text) {
    put(out, static_cast<uint64_t>(text.size()));
    out += text;
  }
  void begin(const std::string& key, GgufType type) {
    put_string(metadata_, key);
    put(metadata_, static_cast<uint32_t>(type));
    ++keys_;
  }
  void begin_array(const std::string& key, GgufType element, uint64_t count) {
    begin(key, GgufType::kArray);
    put(metadata_, static_cast<uint32_t>(element));
    put(metadata_, count);
  }
  template <typename T>
  GgufWriterForTests& scalar(const std::string& key, GgufType type, T value) {
    begin(key, type);
    put(metadata_, value);
    return *this;
  }

  uint32_t version_;
  uint64_t alignment_;
  uint64_t keys_ = 0, tensors_ = 0;
  std::string metadata_, infos_, data_;
};

}  // namespace flywheel::model
