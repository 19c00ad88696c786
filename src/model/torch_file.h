// One file of torch.save: a zip with a pickle that describes a value, and the storages of its tensors as they
// lie in memory. The pickle is read as data (pickle.h); a tensor is a view into the map.
//
// Layout and meaning by torch's torch/serialization.py and torch/_utils.py; docs/formats/torch.md.
//
// Ownership: a file owns its map, or the caller keeps the bytes; spans point into them.
// Threads: immutable after open, so any.
// Errors: kInvalid (no such file, big-endian, a name that is refused), kCorrupt (a storage that is missing or
// too short, a view that leaves it), with file, tensor and byte.
//
//   ASSIGN_OR_RETURN(const TorchFile file, TorchFile::open("optim_states.pt"));
//   const PickleNode* state = file.root().get("optimizer_state_dict");
//   ASSIGN_OR_RETURN(const TorchTensor tensor, file.tensor(*state->get("flat"), "flat"));
//   std::vector<uint8_t> bytes = tensor.to_contiguous();
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "kernels/dtype.h"
#include "model/pickle.h"
#include "model/zip_archive.h"

namespace flywheel::model {

struct TorchDType {
  const char* name;                     // "torch.bfloat16"
  const char* storage;                  // "torch.BFloat16Storage"; "" where torch has none
  int64_t bytes;                        // of an element
  std::optional<kernels::DType> dtype;  // empty: nothing here computes with it
};
// nullptr for a name that is no dtype.
const TorchDType* torch_dtype(std::string_view name);

// A view of a storage: element (i, j, ...) lies at offset + i * strides[0] + j * strides[1] + ...
struct TorchTensor {
  const TorchDType* dtype = nullptr;
  std::vector<int64_t> shape, strides;
  int64_t offset = 0;                // in elements
  std::span<const uint8_t> storage;  // its bytes; every element lies inside

  int64_t elements() const;
  // Row-major without gaps: the bytes as they lie are the tensor.
  bool is_contiguous() const;
  std::span<const uint8_t> contiguous_bytes() const;  // where is_contiguous()
  // Every element in row-major order, to elements() * dtype->bytes bytes.
  void copy_to(std::span<uint8_t> out) const;
  std::vector<uint8_t> to_contiguous() const;
  // tensor.float(): elements() values. False for dtypes that have none (complex, fp8, wide unsigned).
  bool to_f32(std::span<float> out) const;
};

// A name may be referred to many times in a short file; long ones would fill the memory.
inline constexpr size_t kMostNameBytes = 1024;

class TorchFile {
 public:
  static Result<TorchFile> open(const std::string& path);
  // The same over bytes that the caller keeps alive (an entry of a larger file); `name` is used in messages.
  static Result<TorchFile> parse(std::string_view bytes, const std::string& name);

  const std::string& path() const { return path_; }
  const PickleNode& root() const { return pickle_.root(); }
  static bool is_tensor(const PickleNode& node);
  // `what` names it in messages.
  Result<TorchTensor> tensor(const PickleNode& node, std::string_view what) const;
  // Every tensor in dicts and lists below `node`, by keys and places with dots between:
  // {"model": {"a": t}} has "model.a". A key twice: the last.
  struct Named {
    std::string name;
    const PickleNode* node;
  };
  Result<std::vector<Named>> tensors_below(const PickleNode& node) const;
  // Reads everything and compares with the CRC-32s of the zip.
  Result<void> verify() const { return zip_.verify(); }
  bool has_checksums() const { return zip_.has_checksums(); }

 private:
  Result<void> read();
  Result<std::span<const uint8_t>> storage(const PickleNode& id, const TorchDType** dtype,
                                           std::string_view what) const;

  std::string path_;
  MappedFile map_;
  std::string_view bytes_;
  ZipArchive zip_;
  std::string prefix_;  // of the entries: "archive/"
  PickleDocument pickle_;
};

}  // namespace flywheel::model
