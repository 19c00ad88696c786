// Added tokens: finding them in text, and what they mean to a tokenizer.
#include <algorithm>
#include <set>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

namespace flywheel::model {
namespace {

bool is_word(char32_t c) {
  return has_class(c, kLetter | kNumber | kMark | kConnector);
}

size_t previous_character(std::string_view text, size_t at) {
  size_t begin = at - 1;
  while (begin > 0 && at - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

Vocabulary contents_of(const std::vector<AddedToken>& tokens) {
  std::vector<std::string> contents;
  for (const AddedToken& token : tokens) contents.push_back(token.content);
  return Vocabulary(contents);
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  contents_ = contents_of(tokens_);
  beginnings_.resize(size_t{256} * 256);
  std::set<size_t, std::greater<>> lengths;
  for (const AddedToken& token : tokens_) {
    lengths.insert(token.content.size());
    const auto first = static_cast<unsigned char>(token.content[0]);
    if (token.content.size() == 1) {
      single_.set(first);
    } else {
      beginnings_[first * size_t{256} + static_cast<unsigned char>(token.content[1])] = true;
    }
  }
  lengths_.assign(lengths.begin(), lengths.end());
}

const AddedToken* AddedTokenFinder::at(std::string_view text, size_t begin, bool parse_special) const {
  for (const size_t length : lengths_) {
    if (length > text.size() - begin) continue;
    const TokenId index = contents_.find(text.substr(begin, length));
    if (index == kNoToken) continue;
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    if (token.special && !parse_special) continue;
    const size_t end = begin + length;
    const bool touched = (begin > 0 && is_word(decode_utf8(text, previous_character(text, begin)).value)) ||
                         (end < text.size() && is_word(decode_utf8(text, end).value));
    if (token.single_word && touched) continue;
    return &token;
  }
  return nullptr;
}

AddedTokenFinder::Match AddedTokenFinder::find(std::string_view text, size_t from, bool parse_special) const {
  const Match none{{text.size(), text.size()}, nullptr};
  if (tokens_.empty()) return none;
  for (size_t i = from; i < text.size(); ++i) {
    const auto first = static_cast<unsigned char>(text[i]);
    const bool pair =
        i + 1 < text.size() && beginnings_[first * size_t{256} + static_cast<unsigned char>(text[i + 1])];
    if (!pair && !single_[first]) continue;
    const AddedToken* token = at(text, i, parse_special);
    if (!token) continue;
    ByteSpan span{i, i + token->content.size()};
    while (token->strip_left && span.begin > from) {
      const size_t begin = previous_character(text, span.begin);
      if (begin < from || !has_class(decode_utf8(text, begin).value, kSpace)) break;
      span.begin = begin;
    }
    while (token->strip_right && span.end < text.size()) {
      const CodePoint c = decode_utf8(text, span.end);
      if (!has_class(c.value, kSpace)) break;
      span.end += c.size_bytes;
    }
    return {span, token};
  }
  return none;
}

void TokenizerParts::set_added(std::vector<AddedToken> list) {
  special.assign(static_cast<size_t>(tokens.size()), false);
  std::vector<AddedToken> original, in_normalized;
  for (AddedToken& token : list) {
    if (token.special && token.id >= 0 && token.id < tokens.size()) {
      special[static_cast<size_t>(token.id)] = true;
    }
    // Where normalization changes nothing, there is one text to look in, and one pass over it.
    if (token.normalized && !normalizer.is_identity()) {
      AlignedText content = AlignedText::of(token.content, false);
      normalizer.apply(content);
      token.content = std::move(content.text);
      in_normalized.push_back(std::move(token));
    } else {
      original.push_back(std::move(token));
    }
  }
  added = AddedTokenFinder(std::move(original));
  added_normalized = AddedTokenFinder(std::move(in_normalized));
}

void TokenizerParts::find_end_tokens() {
  if (eos) end_tokens.push_back(*eos);
  for (const char* name : {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>",
                           "<|endoftext|>", "<|end_of_text|>", "<turn|>", "<|return|>", "<|call|>"}) {
    const TokenId id = tokens.find(name);
    if (id == kNoToken || !special[static_cast<size_t>(id)]) continue;
    if (std::find(end_tokens.begin(), end_tokens.end(), id) == end_tokens.end()) end_tokens.push_back(id);
  }
}

}  // namespace flywheel::model
