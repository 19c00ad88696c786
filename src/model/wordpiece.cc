#include "model/wordpiece.h"

#include "model/unicode.h"

namespace flywheel::model {

void WordPiece::encode(std::string_view piece, std::vector<TokenId>& ids, std::vector<uint32_t>* ends) const {
  const size_t old_ids = ids.size(), old_ends = ends ? ends->size() : 0;
  bool unknown = count_code_points(piece) > options_.longest_word;
  std::string candidate;
  for (size_t begin = 0; begin < piece.size() && !unknown;) {
    const size_t prefix = begin > 0 ? options_.continuing_prefix.size() : 0;
    size_t end = std::min(piece.size(), begin + vocabulary_.longest_bytes());
    candidate = begin > 0 ? options_.continuing_prefix : "";
    candidate += piece.substr(begin, end - begin);
    TokenId found = kNoToken;
    for (; end > begin; --end) {
      if (end < piece.size() && (static_cast<unsigned char>(piece[end]) & 0xC0) == 0x80) continue;
      candidate.resize(prefix + end - begin);
      found = vocabulary_.find(candidate);
      if (found != kNoToken) break;
    }
    if (found == kNoToken) {
      unknown = true;
      break;
    }
    ids.push_back(found);
    if (ends) ends->push_back(static_cast<uint32_t>(end));
    begin = end;
  }
  if (!unknown) return;
  ids.resize(old_ids);
  if (ends) ends->resize(old_ends);
  if (options_.unknown == kNoToken) return;
  ids.push_back(options_.unknown);
  if (ends) ends->push_back(static_cast<uint32_t>(piece.size()));
}

}  // namespace flywheel::model
