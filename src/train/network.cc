#include "train/network.h"

#include "base/config.h"
#include "runtime/modules.h"
#include "train/network_internal.h"

namespace flywheel::train {
namespace {

MakeNetwork* load() {
  const auto found =
      runtime::load_module("flywheel_train_torch.so", kMakeNetwork, runtime::SymbolsFirst::kProgram);
  if (!found.ok()) throw UserError("libtorch", found.error().message, "`make setup && make build` brings it");
  return reinterpret_cast<MakeNetwork*>(*found);
}

}  // namespace

std::unique_ptr<Network> Network::make(const LocalDecoder& decoder, Parameters& parameters, Links& links,
                                       Options options, ThreadPool& pool) {
  static MakeNetwork* const make = load();
  return std::unique_ptr<Network>(make(decoder, parameters, links, options, pool));
}

double Network::train(const Sequences& input, float loss_scale) {
  forward({}, input, {}, Gradient::kWanted, loss_scale);
  backward({}, {});
  weight_gradients({});
  release({});
  return take_loss();
}

}  // namespace flywheel::train
