#include "model/gguf.h"

#include <limits>

#include "model/gguf_internal.h"

namespace flywheel::model {

const char* gguf_type_name(GgufType type) {
  static constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile map, MappedFile::open(path));
  ASSIGN_OR_RETURN(GgufFile file, parse(map.bytes(), path));
  file.map_ = std::move(map);
  return file;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

Result<const GgufValue*> GgufFile::get(std::string_view key) const {
  const auto it = metadata_.find(key);
  if (it == metadata_.end()) return make_error(ErrorCode::kNotFound, "{}: no metadata key {}", path_, key);
  return &it->second;
}

Error GgufFile::wrong_type(std::string_view key, const GgufValue& value, const char* wanted) const {
  const auto* array = std::get_if<GgufArray>(&value.value);
  return make_error(ErrorCode::kInvalid, "{}: metadata key {} is {}{}, not {}", path_, key,
                    array != nullptr ? "an array of " : "",
                    gguf_type_name(array != nullptr ? array->element : value.type), wanted);
}

Result<int64_t> GgufFile::integer(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, get(key));
  if (const auto* number = std::get_if<int64_t>(&value->value)) return *number;
  const auto* number = std::get_if<uint64_t>(&value->value);
  if (number == nullptr || *number > uint64_t{std::numeric_limits<int64_t>::max()}) {
    return wrong_type(key, *value, "an integer");
  }
  return static_cast<int64_t>(*number);
}

Result<double> GgufFile::number(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, get(key));
  if (const auto* number = std::get_if<double>(&value->value)) return *number;
  if (const auto* number = std::get_if<int64_t>(&value->value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<uint64_t>(&value->value)) return static_cast<double>(*number);
  return wrong_type(key, *value, "a number");
}

Result<bool> GgufFile::boolean(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, get(key));
  if (const auto* flag = std::get_if<bool>(&value->value)) return *flag;
  return wrong_type(key, *value, "true or false");
}

Result<std::string_view> GgufFile::string(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, get(key));
  if (const auto* text = std::get_if<std::string_view>(&value->value)) return *text;
  return wrong_type(key, *value, "a string");
}

Result<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, get(key));
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element != GgufType::kString)
    return wrong_type(key, *value, "an array of strings");
  std::vector<std::string_view> all;
  all.reserve(array->count);
  std::string_view rest = array->raw;
  for (uint64_t i = 0; i < array->count; ++i) {
    const auto length = load<uint64_t>(rest.data());
    all.push_back(rest.substr(8, length));
    rest.remove_prefix(8 + length);
  }
  return all;
}

Result<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, get(key));
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || !(is_unsigned(array->element) || is_signed(array->element))) {
    return wrong_type(key, *value, "an array of integers");
  }
  std::vector<int64_t> all(array->count);
  const uint64_t step = type_bytes(array->element);
  for (uint64_t i = 0; i < array->count; ++i) {
    const char* at = array->raw.data() + i * step;
    all[i] = is_signed(array->element) ? load_signed(array->element, at)
                                       : static_cast<int64_t>(load_unsigned(array->element, at));
  }
  return all;
}

Result<std::vector<float>> GgufFile::floats(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, get(key));
  const auto* array = std::get_if<GgufArray>(&value->value);
  const bool wide = array != nullptr && array->element == GgufType::kF64;
  if (array == nullptr || !(wide || array->element == GgufType::kF32))
    return wrong_type(key, *value, "an array of floats");
  std::vector<float> all(array->count);
  for (uint64_t i = 0; i < array->count; ++i) {
    all[i] = wide ? static_cast<float>(load<double>(array->raw.data() + i * 8))
                  : load<float>(array->raw.data() + i * 4);
  }
  return all;
}

}  // namespace flywheel::model
