#include "model/weights.h"

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "kernels/quant.h"
#include "model/gguf.h"
#include "model/safetensors.h"

namespace flywheel::model {

int64_t TensorInfo::elements() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

int64_t TensorInfo::rows() const {
  return cols() == 0 ? 0 : elements() / cols();
}

const TensorInfo* WeightSource::find(const std::string& name) const {
  const auto& all = tensors();
  const auto it =
      std::lower_bound(all.begin(), all.end(), name,
                       [](const TensorInfo& info, const std::string& n) { return info.name < n; });
  return it != all.end() && it->name == name ? &*it : nullptr;
}

Result<std::unique_ptr<WeightSource>> open_weights(const std::string& path) {
  if (path.ends_with(".gguf")) return open_gguf_weights(path);
  if (path.ends_with(".safetensors")) return open_safetensors_weights(path);
  if (std::error_code error;
      std::filesystem::exists(path, error) && !std::filesystem::is_directory(path, error)) {
    return make_error(ErrorCode::kInvalid,
                      "not a model: {} is neither a folder nor a .gguf or .safetensors file", path);
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, list_folder(path));
  std::vector<std::string> ggufs;
  for (const std::string& name : names) {
    if (name == "model.safetensors" || name == "model.safetensors.index.json")
      return open_safetensors_weights(path);
    if (name.ends_with(".gguf")) ggufs.push_back(name);
  }
  if (ggufs.size() == 1) return open_gguf_weights(path + "/" + ggufs.front());
  return make_error(ErrorCode::kNotFound, "{}: {}", path,
                    ggufs.empty() ? "holds no model.safetensors, no model.safetensors.index.json and no .gguf"
                                  : "holds several .gguf files; name one of them");
}

std::vector<float> to_f32(const Tensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.elements()));
  if (out.empty()) return out;
  if (!kernels::is_quantized(tensor.dtype)) {
    // The map promises no alignment; the conversion wants whole elements.
    std::vector<uint8_t> aligned(tensor.bytes.begin(), tensor.bytes.end());
    kernels::to_f32(out.data(), aligned.data(), tensor.dtype, tensor.elements());
    return out;
  }
  const int64_t row_bytes = kernels::row_bytes(tensor.dtype, tensor.cols());
  for (int64_t r = 0; r < tensor.rows(); ++r) {
    kernels::dequantize_row(out.data() + r * tensor.cols(), tensor.dtype, tensor.bytes.data() + r * row_bytes,
                            tensor.cols());
  }
  return out;
}

}  // namespace flywheel::model
