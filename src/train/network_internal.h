// Between the program and the module that links libtorch (network_torch.cc).
//
// The module calls the program's functions, which the program's linker is told to keep (cmake/room.cmake), so
// that there is one of everything.
#pragma once

#include "train/network.h"

namespace flywheel::train {

struct TorchModule {
  uint64_t layout;
  Network* (*make)(const LocalDecoder& decoder, Parameters& parameters, Links& links,
                   const Network::Options& options, ThreadPool& pool);
};
using GetTorchModule = const TorchModule*();
constexpr const char* kTorchModule = "flywheel_torch_module";  // of type GetTorchModule: its one symbol

// Of what both sides use: a module that was built with another one is not this program's.
template <typename... T>
constexpr uint64_t layout_of() {
  uint64_t layout = 1;
  ((layout = layout * 1'000'003 + sizeof(T)), ...);
  return layout;
}
constexpr uint64_t kTorchLayout =
    layout_of<TorchModule, LocalDecoder, Parameters, Links, Network::Options, Sequences, BucketMover>();

}  // namespace flywheel::train
