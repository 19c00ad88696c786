// read_weights PATH OUT: every tensor of what open_weights() opens, as one safetensors file.
#include <cstdio>

#include "model/safetensors.h"
#include "model/weights.h"

namespace {

using namespace flywheel;

Result<void> copy(const std::string& path, const std::string& out) {
  ASSIGN_OR_RETURN(const auto source, model::open_weights(path));
  std::vector<model::Tensor> tensors;
  for (const model::TensorInfo& info : source->tensors()) {
    ASSIGN_OR_RETURN(model::Tensor tensor, source->tensor(info.name));
    tensors.push_back(std::move(tensor));
  }
  return model::write_safetensors_file(out, tensors);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "read_weights PATH OUT\n");
    return 2;
  }
  const auto done = copy(argv[1], argv[2]);
  if (!done.ok()) std::fprintf(stderr, "%s\n", done.error().message.c_str());
  return done.ok() ? 0 : 1;
}
