// The tokenizer that a person names: a path, or a model or tokenizer in the store. UserError where there is
// none.
#pragma once

#include <string>

#include "model/open_model.h"
#include "model/tokenizer.h"

namespace flywheel::cli {

inline model::Tokenizer load_tokenizer(const std::string& name_or_path) {
  const std::string path = model::find_model(name_or_path, {"tokenizer", "model"}).value_or_throw();
  return model::Tokenizer::load(path).value_or_throw();
}

}  // namespace flywheel::cli
