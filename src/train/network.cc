#include "train/network.h"

#include "base/config.h"
#include "runtime/modules.h"
#include "train/network_internal.h"

namespace flywheel::train {
namespace {

constexpr const char* kFile = "flywheel_train_torch.so";

Result<const TorchModule*> load_once() {
  const auto found = runtime::load_module(kFile, kTorchModule, runtime::SymbolsFirst::kProgram);
  if (!found.ok()) {
    return make_error(ErrorCode::kUnavailable, "{}; `make setup && make build` brings libtorch",
                      found.error().message);
  }
  const TorchModule* module = reinterpret_cast<GetTorchModule*>(*found)();
  if (module->layout == kTorchLayout) return module;
  return make_error(ErrorCode::kUnavailable, "{} was built with another version of Flywheel: `make build`",
                    kFile);
}

const Result<const TorchModule*>& torch_module() {
  static const Result<const TorchModule*> loaded = load_once();
  return loaded;
}

}  // namespace

Result<void> Network::load() {
  if (!torch_module().ok()) return torch_module().error();
  return {};
}

std::unique_ptr<Network> Network::make(const LocalDecoder& decoder, Parameters& parameters, Links& links,
                                       Options options, ThreadPool& pool) {
  load().value_or_throw();
  const TorchModule* module = torch_module().value();
  return std::unique_ptr<Network>(module->make(decoder, parameters, links, options, pool));
}

double Network::train(const Sequences& input, float loss_scale) {
  forward({}, input, {}, Gradient::kWanted, loss_scale);
  backward({}, {});
  weight_gradients({});
  release({});
  return take_loss();
}

}  // namespace flywheel::train
