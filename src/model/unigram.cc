#include "model/unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/unicode.h"

namespace flywheel::model {
namespace {
// How much worse an unknown character is than the worst token.
constexpr double kUnknownPenalty = 10;
}  // namespace

Result<std::unique_ptr<Unigram>> Unigram::create(Vocabulary vocabulary, std::vector<double> scores,
                                                 const std::vector<bool>& usable, UnigramOptions options) {
  const auto size = static_cast<size_t>(vocabulary.size());
  if (scores.size() != size || usable.size() != size) {
    return make_error(ErrorCode::kInvalid, "unigram model: {} scores for {} tokens", scores.size(), size);
  }
  if (!std::all_of(scores.begin(), scores.end(), [](double score) { return std::isfinite(score); })) {
    return make_error(ErrorCode::kInvalid, "unigram model: a score is not a finite number");
  }
  std::unique_ptr<Unigram> model(new Unigram);
  model->vocabulary_ = std::move(vocabulary);
  model->options_ = options;
  if (options.byte_fallback) model->bytes_ = byte_tokens(model->vocabulary_);
  double worst = 0;
  for (size_t id = 0; id < size; ++id) {
    if (usable[id]) worst = std::min(worst, scores[id]);
  }
  model->unknown_score_ = worst - kUnknownPenalty;
  model->scores_ = std::move(scores);
  model->build_trie(usable);
  return model;
}

void Unigram::build_trie(const std::vector<bool>& usable) {
  struct Entry {
    std::string_view text;
    TokenId id;
  };
  std::vector<Entry> entries;
  for (TokenId id = 0; id < vocabulary_.size(); ++id) {
    const std::string_view text = vocabulary_.text(id);
    if (usable[static_cast<size_t>(id)] && !text.empty() && vocabulary_.find(text) == id) {
      entries.push_back({text, id});
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.text < b.text; });
  // Breadth first: each node in turn gets its children from its range of the sorted tokens.
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> ranges = {{0, entries.size(), 0}};
  nodes_.push_back({});
  for (size_t node = 0; node < nodes_.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    if (begin < end && entries[begin].text.size() == depth) nodes_[node].token = entries[begin++].id;
    nodes_[node].children = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const char label = entries[begin].text[depth];
      size_t last = begin;
      while (last < end && entries[last].text[depth] == label) ++last;
      nodes_.push_back({kNoToken, 0, 0, static_cast<uint8_t>(label)});
      ranges.push_back({begin, last, depth + 1});
      ++nodes_[node].count;
      begin = last;
    }
  }
  for (uint32_t i = 0; i < nodes_[0].count; ++i) {
    roots_[nodes_[nodes_[0].children + i].label] = nodes_[0].children + i;
  }
}

const Unigram::Node* Unigram::child(const Node& node, uint8_t label) const {
  const Node* begin = nodes_.data() + node.children;
  const Node* end = begin + node.count;
  const Node* found =
      std::lower_bound(begin, end, label, [](const Node& n, uint8_t wanted) { return n.label < wanted; });
  return found != end && found->label == label ? found : nullptr;
}

void Unigram::encode(std::string_view piece, std::vector<TokenId>& ids, std::vector<uint32_t>* ends) const {
  struct Best {
    double score = -std::numeric_limits<double>::infinity();
    uint32_t begin = 0;
    TokenId token = kNoToken;  // kNoToken: an unknown character
  };
  thread_local std::vector<Best> best;
  best.assign(piece.size() + 1, {});
  best[0].score = 0;
  const auto offer = [&](size_t begin, size_t end, double score, TokenId token) {
    double sum = best[begin].score + score;
    if (options_.single_precision) {
      sum = static_cast<float>(best[begin].score) + static_cast<float>(score);
    }
    if (sum > best[end].score) best[end] = {sum, static_cast<uint32_t>(begin), token};
  };
  for (size_t begin = 0; begin < piece.size();) {
    const size_t size = decode_utf8(piece, begin).size_bytes;
    bool single = false;
    const uint32_t root = roots_[static_cast<unsigned char>(piece[begin])];
    const Node* node = root > 0 ? &nodes_[root] : nullptr;
    for (size_t end = begin + 1; node; ++end) {
      if (node->token != kNoToken) {
        offer(begin, end, scores_[static_cast<size_t>(node->token)], node->token);
        single |= end - begin == size;
      }
      if (end == piece.size()) break;
      node = child(*node, static_cast<uint8_t>(piece[end]));
    }
    if (!single) offer(begin, begin + size, unknown_score_, kNoToken);
    begin += size;
  }

  std::vector<std::pair<uint32_t, uint32_t>> path;  // begin, end; last token first
  for (auto end = static_cast<uint32_t>(piece.size()); end > 0; end = best[end].begin) {
    path.emplace_back(best[end].begin, end);
  }
  bool last_unknown = false;
  for (auto step = path.rbegin(); step != path.rend(); ++step) {
    const auto [begin, end] = *step;
    const TokenId token = best[end].token;
    const auto push = [&](TokenId id, uint32_t at) {
      ids.push_back(id);
      if (ends) ends->push_back(at);
    };
    if (token != kNoToken) {
      push(token, end);
    } else if (!bytes_.empty()) {
      for (uint32_t i = begin; i < end; ++i) push(bytes_[static_cast<unsigned char>(piece[i])], i + 1);
    } else if (last_unknown) {
      if (ends) ends->back() = end;  // neighbouring unknown characters are one token
    } else if (options_.unknown != kNoToken) {
      push(options_.unknown, end);
    }
    last_unknown = token == kNoToken && bytes_.empty() && options_.unknown != kNoToken;
  }
}

}  // namespace flywheel::model
