#include "model/torch_file.h"

#include <algorithm>
#include <cstring>

namespace flywheel::model {
namespace {

using kernels::DType;
using Kind = PickleNode::Kind;

constexpr TorchDType kDTypes[] = {
    {"torch.float32", "torch.FloatStorage", 4, DType::kF32},
    {"torch.float16", "torch.HalfStorage", 2, DType::kF16},
    {"torch.bfloat16", "torch.BFloat16Storage", 2, DType::kBF16},
    {"torch.float64", "torch.DoubleStorage", 8, std::nullopt},
    {"torch.int64", "torch.LongStorage", 8, std::nullopt},
    {"torch.int32", "torch.IntStorage", 4, std::nullopt},
    {"torch.int16", "torch.ShortStorage", 2, std::nullopt},
    {"torch.int8", "torch.CharStorage", 1, std::nullopt},
    {"torch.uint8", "torch.ByteStorage", 1, std::nullopt},
    {"torch.bool", "torch.BoolStorage", 1, std::nullopt},
    {"torch.complex64", "torch.ComplexFloatStorage", 8, std::nullopt},
    {"torch.complex128", "torch.ComplexDoubleStorage", 16, std::nullopt},
    {"torch.uint16", "", 2, std::nullopt},
    {"torch.uint32", "", 4, std::nullopt},
    {"torch.uint64", "", 8, std::nullopt},
    {"torch.float8_e4m3fn", "", 1, std::nullopt},
    {"torch.float8_e5m2", "", 1, std::nullopt},
    {"torch.float8_e4m3fnuz", "", 1, std::nullopt},
    {"torch.float8_e5m2fnuz", "", 1, std::nullopt},
};
constexpr const char* kUntyped = "torch.storage.UntypedStorage";

constexpr size_t kMostDimensions = 16;
constexpr int64_t kMostElements = int64_t{1} << 48;
// A view with stride 0 has more elements than its storage: a small file must not become a large memory.
constexpr int64_t kMostRepeatedBytes = int64_t{1} << 28;

constexpr int kMostFolders = 64;  // of dicts in dicts

// Whole numbers of a tuple or list, none negative; false for anything else.
bool read_sizes(const PickleNode* node, std::vector<int64_t>& out) {
  if (node == nullptr || !(node->is(Kind::kTuple) || node->is(Kind::kList))) return false;
  for (const PickleNode* item : node->items) {
    if (!item->is(Kind::kInt) || item->integer < 0 || item->integer > kMostElements) return false;
    out.push_back(item->integer);
  }
  return out.size() <= kMostDimensions;
}

template <typename T>
void widen(std::span<float> out, std::span<const uint8_t> bytes) {
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    out[i] = static_cast<float>(value);
  }
}

}  // namespace

const TorchDType* torch_dtype(std::string_view name) {
  const auto* const found = std::ranges::find(kDTypes, name, &TorchDType::name);
  return found == std::end(kDTypes) ? nullptr : found;
}

int64_t TorchTensor::elements() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

bool TorchTensor::is_contiguous() const {
  if (elements() == 0) return true;
  int64_t expected = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    if (shape[d] != 1 && strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

std::span<const uint8_t> TorchTensor::contiguous_bytes() const {
  if (elements() == 0) return {};
  return storage.subspan(static_cast<size_t>(offset * dtype->bytes),
                         static_cast<size_t>(elements() * dtype->bytes));
}

void TorchTensor::copy_to(std::span<uint8_t> out) const {
  const int64_t count = elements(), width = dtype->bytes;
  if (count == 0) return;
  if (is_contiguous()) {
    std::memcpy(out.data(), contiguous_bytes().data(), out.size());
    return;
  }
  // Odometer over all dimensions but the last.
  const int64_t inner = shape.back(), inner_stride = strides.back();
  std::vector<int64_t> at(shape.size(), 0);
  int64_t from = offset;
  uint8_t* to = out.data();
  for (int64_t row = 0; row < count / inner; ++row) {
    const uint8_t* source = storage.data() + from * width;
    for (int64_t i = 0; i < inner; ++i, to += width)
      std::memcpy(to, source + i * inner_stride * width, static_cast<size_t>(width));
    for (size_t d = shape.size() - 1; d-- > 0;) {
      from += strides[d];
      if (++at[d] < shape[d]) break;
      from -= strides[d] * shape[d];
      at[d] = 0;
    }
  }
}

std::vector<uint8_t> TorchTensor::to_contiguous() const {
  std::vector<uint8_t> out(static_cast<size_t>(elements() * dtype->bytes));
  copy_to(out);
  return out;
}

bool TorchTensor::to_f32(std::span<float> out) const {
  const std::vector<uint8_t> bytes = to_contiguous();
  const std::string_view name = dtype->name;
  if (dtype->dtype) {
    kernels::to_f32(out.data(), bytes.data(), *dtype->dtype, static_cast<int64_t>(out.size()));
  } else if (name == "torch.float64") {
    widen<double>(out, bytes);
  } else if (name == "torch.int64") {
    widen<int64_t>(out, bytes);
  } else if (name == "torch.int32") {
    widen<int32_t>(out, bytes);
  } else if (name == "torch.int16") {
    widen<int16_t>(out, bytes);
  } else if (name == "torch.int8") {
    widen<int8_t>(out, bytes);
  } else if (name == "torch.uint8" || name == "torch.bool") {
    widen<uint8_t>(out, bytes);
  } else {
    return false;
  }
  return true;
}

Result<TorchFile> TorchFile::open(const std::string& path) {
  TorchFile file;
  file.path_ = path;
  ASSIGN_OR_RETURN(file.map_, MappedFile::open(path));
  file.bytes_ = file.map_.bytes();
  RETURN_IF_ERROR(file.read());
  return file;
}

Result<TorchFile> TorchFile::parse(std::string_view bytes, const std::string& name) {
  TorchFile file;
  file.path_ = name;
  file.bytes_ = bytes;
  RETURN_IF_ERROR(file.read());
  return file;
}

Result<void> TorchFile::read() {
  if (!ZipArchive::looks_like_one(bytes_)) {
    return make_error(
        ErrorCode::kInvalid,
        "{}: not a file of torch.save since torch 1.6 (2020), which is a zip; load it in Python "
        "and save its state_dict() again",
        path_);
  }
  ASSIGN_OR_RETURN(zip_, ZipArchive::parse(bytes_, path_));
  const ZipEntry* pickle = nullptr;
  for (const ZipEntry& entry : zip_.entries()) {
    const size_t slash = entry.name.find('/');
    if (slash == std::string_view::npos || entry.name.substr(slash) != "/data.pkl") continue;
    pickle = &entry;
    prefix_ = entry.name.substr(0, slash + 1);
    break;
  }
  if (pickle == nullptr) {
    return make_error(ErrorCode::kInvalid, "{}: a zip without data.pkl: not a file of torch.save", path_);
  }
  if (const ZipEntry* order = zip_.find(prefix_ + "byteorder");
      order != nullptr && order->bytes != "little") {
    return make_error(
        ErrorCode::kInvalid,
        "{}: its byteorder is \"{}\", and only little-endian files can be mapped; load and save "
        "it with torch on this machine",
        path_, order->bytes.substr(0, 20));
  }
  if (zip_.find(prefix_ + "constants.pkl") != nullptr) {
    return make_error(ErrorCode::kInvalid,
                      "{}: a TorchScript program (torch.jit.save), not a state_dict; save "
                      "model.state_dict() with torch.save",
                      path_);
  }
  ASSIGN_OR_RETURN(pickle_, PickleDocument::parse(pickle->bytes, path_));
  return {};
}

bool TorchFile::is_tensor(const PickleNode& node) {
  if (!node.is(Kind::kObject)) return false;
  const std::string_view call = node.items[0]->text;
  return call.starts_with("torch._utils._rebuild_") || call == "torch._tensor._rebuild_from_type_v2";
}

// ('storage', torch.FloatStorage, '0', 'cpu', elements); of an untyped one bytes.
Result<std::span<const uint8_t>> TorchFile::storage(const PickleNode& id, const TorchDType** dtype,
                                                    std::string_view what) const {
  const auto corrupt = [&](const std::string& why) {
    return make_error(ErrorCode::kCorrupt, "{}: tensor {}: {}", path_, what, why);
  };
  const PickleNode& tuple = *id.items[0];
  const auto& part = tuple.items;
  if (!tuple.is(Kind::kTuple) || part.size() < 5 || part[0]->text != "storage" ||
      !part[1]->is(Kind::kGlobal) || !part[2]->is(Kind::kString) || !part[4]->is(Kind::kInt) ||
      part[4]->integer < 0 || part[4]->integer > kMostElements) {
    return corrupt("its storage is not described as torch does");
  }
  int64_t width = 1;
  if (part[1]->text != kUntyped) {
    const auto* const found = std::ranges::find(kDTypes, part[1]->text, &TorchDType::storage);
    if (found == std::end(kDTypes)) return corrupt(fmt::format("{} is no storage", part[1]->text));
    if (*dtype == nullptr) *dtype = found;
    width = found->bytes;
  }
  const std::string name = fmt::format("{}data/{}", prefix_, part[2]->text);
  const ZipEntry* entry = zip_.find(name);
  if (entry == nullptr) return corrupt(fmt::format("its storage {} is not in the file", name));
  const auto wanted = static_cast<uint64_t>(part[4]->integer * width);
  if (entry->bytes.size() < wanted) {
    return corrupt(
        fmt::format("its storage {} has {} bytes and should have {}", name, entry->bytes.size(), wanted));
  }
  return std::span(reinterpret_cast<const uint8_t*>(entry->bytes.data()), static_cast<size_t>(wanted));
}

Result<TorchTensor> TorchFile::tensor(const PickleNode& node, std::string_view what) const {
  const auto corrupt = [&](const std::string& why) {
    return make_error(ErrorCode::kCorrupt, "{}: tensor {}: {}", path_, what, why);
  };
  // Parameters and subclasses are a tensor with something around it.
  const PickleNode* call = &node;
  const PickleNode* arguments = nullptr;
  std::string_view function;
  for (int wraps = 0;; ++wraps) {
    if (wraps > 4 || call == nullptr || !is_tensor(*call)) return corrupt("is not described as torch does");
    function = call->items[0]->text;
    arguments = call->items[1];
    if (function.starts_with("torch._utils._rebuild_parameter")) {
      call = call->argument(0);
      continue;
    }
    if (function == "torch._tensor._rebuild_from_type_v2") {  // (function, type, arguments, state)
      const auto& part = arguments->items;
      if (part.size() < 3 || !part[0]->is(Kind::kGlobal) || !part[2]->is(Kind::kTuple))
        return corrupt("is not described as torch does");
      function = part[0]->text;
      arguments = part[2];
      if (function.starts_with("torch._utils._rebuild_parameter")) {
        call = arguments->items.empty() ? nullptr : arguments->items[0];
        continue;
      }
    }
    break;
  }
  // (storage, offset, size, strides, requires_grad, hooks[, dtype in v3][, metadata])
  const auto& part = arguments->items;
  TorchTensor tensor;
  const bool v3 = function == "torch._utils._rebuild_tensor_v3";
  if (part.size() < (v3 ? 7U : 4U) || !part[0]->is(Kind::kPersistent) || !part[1]->is(Kind::kInt) ||
      part[1]->integer < 0 || part[1]->integer > kMostElements || !read_sizes(part[2], tensor.shape) ||
      !read_sizes(part[3], tensor.strides) || tensor.shape.size() != tensor.strides.size()) {
    return corrupt("is not described as torch does");
  }
  if (v3) tensor.dtype = torch_dtype(part[6]->text);
  if (v3 && tensor.dtype == nullptr) return corrupt(fmt::format("{} is no dtype", part[6]->text));
  const size_t notes = v3 ? 7 : 6;
  for (const char* lazy : {"conj", "neg"}) {
    const PickleNode* set = part.size() > notes ? part[notes]->get(lazy) : nullptr;
    if (set != nullptr && set->integer != 0) {
      return make_error(ErrorCode::kInvalid,
                        "{}: tensor {} is a lazily negated or conjugated view; save tensor.contiguous()",
                        path_, what);
    }
  }
  tensor.offset = part[1]->integer;
  ASSIGN_OR_RETURN(tensor.storage, storage(*part[0], &tensor.dtype, what));
  if (tensor.dtype == nullptr) return corrupt("an untyped storage without a dtype");

  using Wide = __int128;
  Wide elements = 1, last = tensor.offset;
  for (size_t d = 0; d < tensor.shape.size(); ++d) {
    elements *= tensor.shape[d];
    last += Wide{tensor.shape[d] - 1} * tensor.strides[d];
    if (elements > kMostElements) return corrupt("is too large to be true");
  }
  const auto held = static_cast<int64_t>(tensor.storage.size()) / tensor.dtype->bytes;
  if (elements > 0 && last >= held) {
    return corrupt(fmt::format("ends at element {} of a storage of {}", static_cast<int64_t>(last), held));
  }
  if (elements > held && elements * tensor.dtype->bytes > kMostRepeatedBytes) {
    return make_error(ErrorCode::kInvalid,
                      "{}: tensor {} repeats a storage of {} values as {}; save tensor.contiguous()", path_,
                      what, held, static_cast<int64_t>(elements));
  }
  return tensor;
}

Result<std::vector<TorchFile::Named>> TorchFile::tensors_below(const PickleNode& node) const {
  struct Place {
    const PickleNode* node;
    std::string name;
    int depth;
  };
  std::vector<Named> found;
  std::vector<Place> open{{&node, "", 0}};
  // Dicts that hold one another many times unfold without end; an honest file refers to each once or twice.
  size_t left = 100 + bytes_.size();
  while (!open.empty()) {
    const Place place = std::move(open.back());
    open.pop_back();
    if (is_tensor(*place.node)) {
      found.push_back({place.name, place.node});
      continue;
    }
    const bool dict = place.node->is(Kind::kDict);
    if (!dict && !place.node->is(Kind::kList) && !place.node->is(Kind::kTuple)) continue;
    const auto& items = place.node->items;
    if (place.depth == kMostFolders || items.size() > left) {
      return make_error(ErrorCode::kInvalid, "{}: refused: its dicts and lists hold one another without end",
                        path_);
    }
    left -= items.size();
    for (size_t i = items.size(); i-- > 0;) {
      if (dict && i % 2 == 0) continue;
      const PickleNode* key = dict ? items[i - 1] : nullptr;
      if (dict && !key->is(Kind::kString) && !key->is(Kind::kInt)) continue;
      const PickleNode& value = *items[i];
      if (!value.is(Kind::kObject) && value.items.empty()) continue;
      std::string name = !dict                 ? std::to_string(i)
                         : key->is(Kind::kInt) ? std::to_string(key->integer)
                                               : std::string(key->text.substr(0, kMostNameBytes + 1));
      if (!place.name.empty()) name = place.name + "." + name;
      if (name.size() > kMostNameBytes)
        return make_error(ErrorCode::kInvalid, "{}: refused: a tensor's name of {} bytes", path_,
                          name.size());
      open.push_back({&value, std::move(name), place.depth + 1});
    }
  }
  return found;
}

}  // namespace flywheel::model
