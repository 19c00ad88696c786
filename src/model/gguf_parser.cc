// The layout of a GGUF file: header, metadata, tensors.
#include <bit>
#include <limits>
#include <optional>

#include "model/gguf_internal.h"

namespace flywheel::model {
namespace {

using kernels::DType;

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr int kMaxDimensions = 4;
constexpr int kMaxArrayDepth = 4;
constexpr uint64_t kMaxNameBytes = 65535;
constexpr uint64_t kMaxAlignment = 1 << 20;

// The ggml project's numbers of tensor types.
std::optional<DType> dtype_of(uint32_t ggml_type) {
  switch (ggml_type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 6:
      return DType::kQ5_0;
    case 7:
      return DType::kQ5_1;
    case 8:
      return DType::kQ8_0;
    case 10:
      return DType::kQ2_K;
    case 11:
      return DType::kQ3_K;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 14:
      return DType::kQ6_K;
    case 30:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

}  // namespace

// Reads front to back; every read is checked against the end first.
class GgufParser {
 public:
  GgufParser(GgufFile& file, std::string_view bytes) : file_(file), bytes_(bytes) {}

  Result<void> parse() {
    RETURN_IF_ERROR(read_header());
    for (uint64_t i = 0; i < metadata_count_; ++i) RETURN_IF_ERROR(read_metadata());
    for (uint64_t i = 0; i < tensor_count_; ++i) RETURN_IF_ERROR(read_tensor_info());
    return place_tensors();
  }

 private:
  uint64_t left() const { return bytes_.size() - at_; }

  template <typename... Args>
  Error corrupt(fmt::format_string<Args...> format, Args&&... args) const {
    return make_error(ErrorCode::kCorrupt, "{}: {}", file_.path_,
                      fmt::format(format, std::forward<Args>(args)...));
  }

  Error cut_short(const std::string& what, uint64_t wanted) const {
    return corrupt(
        "{} at byte {} needs {} bytes but the file ends at byte {}: the file was cut short or is damaged; "
        "fetch it again",
        what, at_, wanted, bytes_.size());
  }

  template <typename T>
  Result<T> read(const std::string& what) {
    if (left() < sizeof(T)) return cut_short(what, sizeof(T));
    const T value = load<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return value;
  }

  Result<std::string_view> read_string(const std::string& what) {
    ASSIGN_OR_RETURN(const uint64_t length, read<uint64_t>(what));
    if (left() < length) return cut_short(what, length);
    const std::string_view text = bytes_.substr(at_, length);
    at_ += length;
    return text;
  }

  Result<void> read_header() {
    ASSIGN_OR_RETURN(const uint32_t magic, read<uint32_t>("the magic number"));
    if (magic != kMagic) {
      return make_error(ErrorCode::kInvalid, "{}: not a GGUF file: it begins with 0x{:08x}, not \"GGUF\"",
                        file_.path_, __builtin_bswap32(magic));
    }
    ASSIGN_OR_RETURN(file_.version_, read<uint32_t>("the version"));
    if (file_.version_ != 2 && file_.version_ != 3) {
      const bool swapped = (file_.version_ & 0xffff) == 0;
      return make_error(
          ErrorCode::kInvalid, "{}: GGUF version {} at byte 4; versions 2 and 3, little-endian, are read{}",
          file_.path_, file_.version_,
          swapped ? " (this one is big-endian; convert it on the machine it was made for)" : "");
    }
    ASSIGN_OR_RETURN(tensor_count_, read<uint64_t>("the number of tensors"));
    ASSIGN_OR_RETURN(metadata_count_, read<uint64_t>("the number of metadata keys"));
    // The least that an entry can take: absurd counts stop here, not after hours.
    if (metadata_count_ > left() / 13)
      return corrupt("it claims {} metadata keys in {} bytes", metadata_count_, left());
    if (tensor_count_ > left() / 24)
      return corrupt("it claims {} tensors in {} bytes", tensor_count_, left());
    return {};
  }

  Result<void> read_metadata() {
    const uint64_t key_at = at_;
    ASSIGN_OR_RETURN(const std::string_view key, read_string("a metadata key"));
    if (key.empty() || key.size() > kMaxNameBytes) {
      return corrupt("the metadata key at byte {} has {} bytes; 1 to {} are allowed", key_at, key.size(),
                     kMaxNameBytes);
    }
    const std::string what = fmt::format("metadata key {}", key);
    ASSIGN_OR_RETURN(const GgufType type, read_type(what));
    ASSIGN_OR_RETURN(const GgufValue value, read_value(type, what));
    if (!file_.metadata_.emplace(std::string(key), value).second) {
      return corrupt("metadata key {} at byte {} is there a second time", key, key_at);
    }
    return {};
  }

  Result<GgufType> read_type(const std::string& what) {
    ASSIGN_OR_RETURN(const uint32_t type, read<uint32_t>(what));
    if (type > static_cast<uint32_t>(GgufType::kF64)) {
      return corrupt("{} at byte {} has value type {}; 0 to 12 are known", what, at_ - 4, type);
    }
    return static_cast<GgufType>(type);
  }

  Result<GgufValue> read_value(GgufType type, const std::string& what) {
    GgufValue value{type, uint64_t{0}};
    if (type == GgufType::kString) {
      ASSIGN_OR_RETURN(value.value, read_string(what));
      return value;
    }
    if (type == GgufType::kArray) {
      ASSIGN_OR_RETURN(value.value, read_array(what, kMaxArrayDepth));
      return value;
    }
    if (left() < type_bytes(type)) return cut_short(what, type_bytes(type));
    const char* at = bytes_.data() + at_;
    at_ += type_bytes(type);
    if (type == GgufType::kBool) {
      value.value = *at != 0;
    } else if (type == GgufType::kF32) {
      value.value = static_cast<double>(load<float>(at));
    } else if (type == GgufType::kF64) {
      value.value = load<double>(at);
    } else if (is_unsigned(type)) {
      value.value = load_unsigned(type, at);
    } else {
      value.value = load_signed(type, at);
    }
    return value;
  }

  Result<GgufArray> read_array(const std::string& what, int depth) {
    if (depth == 0) return corrupt("{} nests arrays deeper than {} at byte {}", what, kMaxArrayDepth, at_);
    GgufArray array;
    ASSIGN_OR_RETURN(array.element, read_type(what));
    ASSIGN_OR_RETURN(array.count, read<uint64_t>(what));
    const uint64_t begin = at_;
    const uint64_t element_bytes = type_bytes(array.element);
    const uint64_t least = element_bytes > 0 ? element_bytes : array.element == GgufType::kString ? 8 : 12;
    if (array.count > left() / least) {
      return corrupt(
          "{} claims {} elements at byte {} but the file ends at byte {}: the file was cut short or is "
          "damaged; fetch it again",
          what, array.count, begin, bytes_.size());
    }
    if (element_bytes > 0) {
      at_ += array.count * element_bytes;
    } else {
      for (uint64_t i = 0; i < array.count; ++i) {
        if (array.element == GgufType::kString) {
          RETURN_IF_ERROR(read_string(what));
        } else {
          RETURN_IF_ERROR(read_array(what, depth - 1));
        }
      }
    }
    array.raw = bytes_.substr(begin, at_ - begin);
    return array;
  }

  Result<void> read_tensor_info() {
    const uint64_t begin = at_;
    GgufTensor tensor;
    ASSIGN_OR_RETURN(const std::string_view name, read_string("a tensor's name"));
    if (name.empty() || name.size() > kMaxNameBytes) {
      return corrupt("the tensor name at byte {} has {} bytes; 1 to {} are allowed", begin, name.size(),
                     kMaxNameBytes);
    }
    tensor.name = name;
    const std::string what = fmt::format("tensor {}", name);
    ASSIGN_OR_RETURN(const uint32_t dimensions, read<uint32_t>(what));
    if (dimensions < 1 || dimensions > kMaxDimensions) {
      return corrupt("{} has {} dimensions at byte {}; 1 to {} are allowed", what, dimensions, at_ - 4,
                     kMaxDimensions);
    }
    tensor.shape.resize(dimensions);
    for (uint32_t i = 0; i < dimensions; ++i) {
      ASSIGN_OR_RETURN(const uint64_t size, read<uint64_t>(what));
      if (size == 0 || size > uint64_t{1} << 40)
        return corrupt("{} has a dimension of {} at byte {}", what, size, at_ - 8);
      tensor.shape[dimensions - 1 - i] = static_cast<int64_t>(size);
    }
    ASSIGN_OR_RETURN(const uint32_t type, read<uint32_t>(what));
    const std::optional<DType> dtype = dtype_of(type);
    if (!dtype) {
      return make_error(
          ErrorCode::kInvalid,
          "{}: {} has ggml type {} at byte {}, which is not read here; take a file in F32, F16, BF16, "
          "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K",
          file_.path_, what, type, at_ - 4);
    }
    tensor.dtype = *dtype;
    ASSIGN_OR_RETURN(tensor.offset,
                     read<uint64_t>(what));  // from the start of the data, until place_tensors()
    if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second) {
      return corrupt("{} at byte {} is there a second time", what, begin);
    }
    file_.tensors_.push_back(std::move(tensor));
    return {};
  }

  Result<void> place_tensors() {
    uint64_t alignment = 32;
    if (file_.has("general.alignment")) {
      ASSIGN_OR_RETURN(const int64_t value, file_.integer("general.alignment"));
      if (value < 1 || static_cast<uint64_t>(value) > kMaxAlignment ||
          !std::has_single_bit(static_cast<uint64_t>(value))) {
        return corrupt("general.alignment is {}; a power of two up to {} is allowed", value, kMaxAlignment);
      }
      alignment = static_cast<uint64_t>(value);
    }
    const uint64_t data = (at_ + alignment - 1) / alignment * alignment;
    for (GgufTensor& tensor : file_.tensors_) {
      ASSIGN_OR_RETURN(const uint64_t size, tensor_bytes(tensor));
      if (tensor.offset % alignment != 0) {
        return corrupt("tensor {} begins {} bytes into the data, which is no multiple of {}", tensor.name,
                       tensor.offset, alignment);
      }
      const uint64_t room = bytes_.size() > data ? bytes_.size() - data : 0;
      if (tensor.offset > room || size > room - tensor.offset) {
        const auto end = static_cast<unsigned __int128>(data) + tensor.offset + size;
        return corrupt(
            "tensor {} ends at byte {} but the file has {}: it was cut short or is damaged; fetch it again",
            tensor.name,
            end > std::numeric_limits<uint64_t>::max() ? "2^64 or more"
                                                       : std::to_string(static_cast<uint64_t>(end)),
            bytes_.size());
      }
      tensor.offset += data;
      tensor.bytes = {reinterpret_cast<const uint8_t*>(bytes_.data()) + tensor.offset, size};
    }
    return {};
  }

  Result<uint64_t> tensor_bytes(const GgufTensor& tensor) const {
    const auto block = kernels::block_elements(tensor.dtype);
    if (tensor.shape.back() % block != 0) {
      return corrupt("tensor {} has rows of {} elements, which are no whole {} blocks of {}", tensor.name,
                     tensor.shape.back(), kernels::dtype_name(tensor.dtype), block);
    }
    unsigned __int128 size = static_cast<uint64_t>(kernels::row_bytes(tensor.dtype, tensor.shape.back()));
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
      size *= static_cast<uint64_t>(tensor.shape[i]);
      if (size > std::numeric_limits<int64_t>::max())
        return corrupt("tensor {} is too large to be true", tensor.name);
    }
    return static_cast<uint64_t>(size);
  }

  GgufFile& file_;
  std::string_view bytes_;
  uint64_t at_ = 0;
  uint64_t tensor_count_ = 0, metadata_count_ = 0;
};

Result<GgufFile> GgufFile::parse(std::string_view bytes, const std::string& name) {
  GgufFile file;
  file.path_ = name;
  RETURN_IF_ERROR(GgufParser(file, bytes).parse());
  return file;
}

}  // namespace flywheel::model
