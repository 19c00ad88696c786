// A run's parameters: every value of its resolved config under its dotted key, so that runs can be told
// apart key by key.
//
//   flatten_params("optimizer: {lr: 0.1, betas: [0.9, 0.95]}\n")
//     -> {"optimizer.betas": "[0.9, 0.95]", "optimizer.lr": "0.1"}
//
// A list of plain values is one parameter; a list of mappings has one for each of their values, as
// hosts[0].name. Errors: kInvalid for text that is neither YAML nor JSON. Threads: any.
#pragma once

#include <map>
#include <string>

#include "base/result.h"

namespace flywheel::store {

Result<std::map<std::string, std::string>> flatten_params(const std::string& config);

}  // namespace flywheel::store
