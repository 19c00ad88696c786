#include "model/tokenizer_json_parts.h"

#include <utility>

namespace flywheel::model {

OrderedJson added_token_json(size_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

OrderedJson to_json(BpeModelJson model) {
  OrderedJson json = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", std::move(model.unknown)},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", model.fuse_unknown},
                      {"byte_fallback", model.byte_fallback},
                      {"ignore_merges", model.ignore_merges}};
  json["vocab"] = std::move(model.vocab);
  json["merges"] = std::move(model.merges);
  return json;
}

}  // namespace flywheel::model
