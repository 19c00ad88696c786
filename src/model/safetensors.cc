#include "model/safetensors.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/hash.h"
#include "model/little_endian.h"
#include "model/safetensors_internal.h"

namespace flywheel::model {
namespace {

using kernels::DType;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's limit
constexpr int kMaxDimensions = 8;

struct ElementType {
  const char* name;
  uint64_t bytes;
  std::optional<DType> dtype;  // empty: nothing here computes with it
};
constexpr ElementType kElementTypes[] = {
    {"F32", 4, DType::kF32},   {"F16", 2, DType::kF16},      {"BF16", 2, DType::kBF16},
    {"F64", 8, std::nullopt},  {"I64", 8, std::nullopt},     {"I32", 4, std::nullopt},
    {"I16", 2, std::nullopt},  {"I8", 1, std::nullopt},      {"U64", 8, std::nullopt},
    {"U32", 4, std::nullopt},  {"U16", 2, std::nullopt},     {"U8", 1, std::nullopt},
    {"BOOL", 1, std::nullopt}, {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
};

const ElementType* element_type(std::string_view name) {
  for (const ElementType& type : kElementTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

// A whole number in [0, 2^53]; JSON has no others.
std::optional<uint64_t> whole(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<uint64_t>();
  return number <= uint64_t{1} << 53 ? std::optional(number) : std::nullopt;
}

}  // namespace

const char* safetensors_dtype_name(DType dtype) {
  for (const ElementType& type : kElementTypes) {
    if (type.dtype == dtype) return type.name;
  }
  return nullptr;
}

class SafetensorsParser {
 public:
  SafetensorsParser(SafetensorsFile& file, std::string_view bytes) : file_(file), bytes_(bytes) {}

  Result<void> parse() {
    if (bytes_.size() < 8)
      return corrupt("has {} bytes; a safetensors file begins with 8 of header length", bytes_.size());
    const uint64_t header_bytes = little_endian(bytes_.substr(0, 8));
    if (header_bytes > kMaxHeaderBytes) {
      return make_error(
          ErrorCode::kInvalid,
          "{}: not a safetensors file: its first 8 bytes name a header of {} bytes; {} are allowed",
          file_.path_, header_bytes, kMaxHeaderBytes);
    }
    if (header_bytes > bytes_.size() - 8) {
      return corrupt("the header ends at byte {} but the file has {}: it was cut short; fetch it again",
                     header_bytes + 8, bytes_.size());
    }
    auto header = parse_json(bytes_.substr(8, header_bytes), 8);
    if (!header.ok())
      return corrupt("the header (bytes 8 to {}) is no JSON: {}", header_bytes + 8, header.error().message);
    if (!header->is_object()) return corrupt("the header is no JSON object");
    file_.data_ = bytes_.substr(8 + header_bytes);
    for (const auto& [name, value] : header->items()) {
      RETURN_IF_ERROR(name == "__metadata__" ? read_metadata(value) : read_entry(name, value));
    }
    return check_layout();
  }

 private:
  template <typename... Args>
  Error corrupt(fmt::format_string<Args...> format, Args&&... args) const {
    return make_error(ErrorCode::kCorrupt, "{}: {}", file_.path_,
                      fmt::format(format, std::forward<Args>(args)...));
  }

  Result<void> read_metadata(const Json& value) {
    if (!value.is_object()) return corrupt("__metadata__ is no JSON object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) return corrupt("__metadata__.{} is no string", key);
      file_.metadata_[key] = text.get<std::string>();
    }
    return {};
  }

  Result<void> read_entry(const std::string& name, const Json& value) {
    const bool complete = value.is_object() && value.contains("dtype") && value["dtype"].is_string() &&
                          value.contains("shape") && value["shape"].is_array() &&
                          value.contains("data_offsets") && value["data_offsets"].is_array() &&
                          value["data_offsets"].size() == 2;
    if (!complete) return corrupt("tensor {} lacks dtype, shape or data_offsets in the header", name);
    SafetensorsEntry entry;
    entry.name = name;
    entry.dtype = value["dtype"].get<std::string>();
    const ElementType* type = element_type(entry.dtype);
    if (type == nullptr) {
      return make_error(ErrorCode::kInvalid,
                        "{}: tensor {} has dtype {}, which this format's readers do not know", file_.path_,
                        name, entry.dtype);
    }
    unsigned __int128 size = type->bytes;
    if (value["shape"].size() > kMaxDimensions)
      return corrupt("tensor {} has {} dimensions", name, value["shape"].size());
    for (const Json& dimension : value["shape"]) {
      const auto n = whole(dimension);
      if (!n) return corrupt("tensor {} has a dimension that is no whole number", name);
      entry.shape.push_back(static_cast<int64_t>(*n));
      size *= *n;
      if (size > uint64_t{1} << 53) return corrupt("tensor {} is too large to be true", name);
    }
    const auto begin = whole(value["data_offsets"][0]), end = whole(value["data_offsets"][1]);
    const uint64_t data_at = bytes_.size() - file_.data_.size();
    if (!begin || !end || *end < *begin) return corrupt("tensor {} has malformed data_offsets", name);
    if (*end > file_.data_.size()) {
      return corrupt("tensor {} ends at byte {} but the file has {}: it was cut short; fetch it again", name,
                     data_at + *end, bytes_.size());
    }
    if (*end - *begin != static_cast<uint64_t>(size)) {
      return corrupt("tensor {} at byte {} has {} bytes; its dtype and shape need {}", name, data_at + *begin,
                     *end - *begin, static_cast<uint64_t>(size));
    }
    entry.offset = data_at + *begin;
    entry.bytes = {reinterpret_cast<const uint8_t*>(file_.data_.data()) + *begin, static_cast<size_t>(size)};
    file_.entries_.push_back(std::move(entry));
    return {};
  }

  // The format allows neither holes nor overlaps: bytes that no tensor owns could hide anything.
  Result<void> check_layout() {
    std::vector<const SafetensorsEntry*> order;
    for (const SafetensorsEntry& entry : file_.entries_) order.push_back(&entry);
    std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
      return std::pair(a->offset, a->bytes.size()) < std::pair(b->offset, b->bytes.size());
    });
    uint64_t at = bytes_.size() - file_.data_.size();
    for (const SafetensorsEntry* entry : order) {
      if (entry->offset != at) {
        return corrupt("tensor {} begins at byte {} where {} was expected: tensors overlap or leave a hole",
                       entry->name, entry->offset, at);
      }
      at += entry->bytes.size();
    }
    if (at != bytes_.size())
      return corrupt("{} bytes after byte {} belong to no tensor", bytes_.size() - at, at);
    return {};
  }

  SafetensorsFile& file_;
  std::string_view bytes_;
};

Result<SafetensorsFile> SafetensorsFile::parse(std::string_view bytes, const std::string& name) {
  SafetensorsFile file;
  file.path_ = name;
  RETURN_IF_ERROR(SafetensorsParser(file, bytes).parse());
  return file;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile map, MappedFile::open(path));
  ASSIGN_OR_RETURN(SafetensorsFile file, parse(map.bytes(), path));
  file.map_ = std::move(map);
  return file;
}

Result<Tensor> SafetensorsFile::tensor(std::string_view name) const {
  const auto it =
      std::lower_bound(entries_.begin(), entries_.end(), name,
                       [](const SafetensorsEntry& entry, std::string_view n) { return entry.name < n; });
  if (it == entries_.end() || it->name != name)
    return make_error(ErrorCode::kNotFound, "{}: no tensor {}", path_, name);
  const auto dtype = element_type(it->dtype)->dtype;
  if (!dtype) {
    return make_error(ErrorCode::kInvalid, "{}: tensor {} is {}; F32, F16 and BF16 can be used", path_, name,
                      it->dtype);
  }
  Tensor tensor;
  tensor.name = it->name;
  tensor.dtype = *dtype;
  tensor.shape = it->shape;
  tensor.bytes = it->bytes;
  return tensor;
}

bool SafetensorsFile::has_checksum() const {
  return metadata_.contains(kSafetensorsChecksumKey);
}

Result<void> SafetensorsFile::verify() const {
  const auto it = metadata_.find(kSafetensorsChecksumKey);
  if (it == metadata_.end()) return {};
  const std::string found = fmt::format("{:08x}", crc32c(data_));
  if (found == it->second) return {};
  return make_error(ErrorCode::kCorrupt,
                    "{}: the data has CRC32C {}, but {} was written: the file is damaged", path_, found,
                    it->second);
}

}  // namespace flywheel::model
