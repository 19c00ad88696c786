#include "model/tokenizer_scores.h"

#include <algorithm>
#include <cmath>

namespace flywheel::model {

Result<std::vector<BpeMerge>> merges_of_scores(const Vocabulary& vocabulary,
                                               const std::vector<double>& scores,
                                               const std::vector<bool>& mergeable) {
  std::vector<double> distinct;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!mergeable[i]) continue;
    if (!std::isfinite(scores[i])) {
      return make_error(ErrorCode::kInvalid, "the score of token {} is not a finite number", i);
    }
    distinct.push_back(scores[i]);
  }
  std::sort(distinct.begin(), distinct.end(), std::greater<>());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  std::vector<uint32_t> ranks(scores.size(), kNoRank);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!mergeable[i]) continue;
    const auto at = std::lower_bound(distinct.begin(), distinct.end(), scores[i], std::greater<>());
    ranks[i] = static_cast<uint32_t>(at - distinct.begin());
  }
  return merges_of_vocabulary(vocabulary, ranks);
}

Json sentencepiece_decoder(bool prefix) {
  Json steps = Json::array();
  steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "\xE2\x96\x81"}}}, {"content", " "}});
  steps.push_back({{"type", "ByteFallback"}});
  steps.push_back({{"type", "Fuse"}});
  if (prefix) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", steps}};
}

}  // namespace flywheel::model
