// Between the program and the module that links libtorch (network_torch.cc).
//
// The module calls the program's functions, which the program's linker is told to keep (cmake/room.cmake), so
// that there is one of everything.
#pragma once

#include "train/network.h"

namespace flywheel::train {

using MakeNetwork = Network*(const LocalDecoder& decoder, Parameters& parameters, Links& links,
                             const Network::Options& options, ThreadPool& pool);
constexpr const char* kMakeNetwork = "flywheel_make_network";  // the module's one symbol

}  // namespace flywheel::train
