// Tokenizers from tiktoken's rank files: one line a token, its bytes in base64 and its rank, which is its id.
#include <algorithm>
#include <charconv>

#include "model/bpe.h"
#include "model/byte_level.h"
#include "model/sentencepiece_charsmap.h"
#include "model/tokenizer_internal.h"

namespace flywheel::model {
namespace {

struct Special {
  std::string token;
  TokenId id;
};

// What a rank file does not say: how text is cut, and the special tokens.
struct EncodingRules {
  std::string_view pattern;
  std::vector<Special> special;
  std::string eos, bos;
};

Result<EncodingRules> rules_of(const std::string& encoding, TokenId ranks) {
  const std::string end = "<|endoftext|>";
  if (encoding == "cl100k_base") {
    return EncodingRules{kCl100kPattern,
                         {{end, 100257},
                          {"<|fim_prefix|>", 100258},
                          {"<|fim_middle|>", 100259},
                          {"<|fim_suffix|>", 100260},
                          {"<|endofprompt|>", 100276}},
                         end,
                         ""};
  }
  if (encoding == "o200k_base") {
    return EncodingRules{kO200kPattern, {{end, 199999}, {"<|endofprompt|>", 200018}}, end, ""};
  }
  if (encoding == "r50k_base" || encoding == "p50k_base" || encoding == "gpt2") {
    return EncodingRules{kGpt2Pattern, {{end, 50256}}, end, ""};
  }
  if (encoding == "llama3") {
    EncodingRules rules{kLlama3Pattern, {}, "<|end_of_text|>", "<|begin_of_text|>"};
    const char* names[] = {"<|begin_of_text|>",
                           "<|end_of_text|>",
                           "<|reserved_special_token_0|>",
                           "<|reserved_special_token_1|>",
                           "<|finetune_right_pad_id|>",
                           "<|reserved_special_token_2|>",
                           "<|start_header_id|>",
                           "<|end_header_id|>",
                           "<|eom_id|>",
                           "<|eot_id|>",
                           "<|python_tag|>"};
    for (const char* name : names)
      rules.special.push_back({name, ranks + static_cast<TokenId>(rules.special.size())});
    for (int i = 3; rules.special.size() < 256; ++i) {
      rules.special.push_back({fmt::format("<|reserved_special_token_{}|>", i),
                               ranks + static_cast<TokenId>(rules.special.size())});
    }
    return rules;
  }
  return make_error(
      ErrorCode::kInvalid,
      "tiktoken encoding `{}` is not known; cl100k_base, o200k_base, r50k_base, p50k_base, gpt2 and "
      "llama3 are",
      encoding);
}

Result<std::vector<std::string>> read_ranks(std::string_view text) {
  constexpr int64_t kMostTokens = int64_t{1} << 24;
  constexpr size_t kLongestToken = 4096;
  std::vector<std::string> tokens;
  int64_t line_number = 0;
  for (size_t at = 0; at < text.size();) {
    ++line_number;
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    int64_t rank = -1;
    if (space != std::string_view::npos) {
      const std::string_view digits = line.substr(space + 1);
      const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
      if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size()) rank = -1;
    }
    if (rank < 0 || rank >= kMostTokens) {
      return make_error(ErrorCode::kInvalid, "tiktoken line {}: expected `base64 rank`", line_number);
    }
    ASSIGN_OR_RETURN(std::string bytes, decode_base64(line.substr(0, space)));
    if (bytes.empty() || bytes.size() > kLongestToken) {
      return make_error(ErrorCode::kInvalid, "tiktoken line {}: a token of {} bytes", line_number,
                        bytes.size());
    }
    if (static_cast<size_t>(rank) >= tokens.size()) tokens.resize(static_cast<size_t>(rank) + 1);
    tokens[static_cast<size_t>(rank)] = std::move(bytes);
  }
  if (tokens.empty()) return make_error(ErrorCode::kInvalid, "tiktoken: no ranks in the file");
  return tokens;
}

}  // namespace

Result<Tokenizer> Tokenizer::from_tiktoken(std::string_view ranks, const std::string& encoding) {
  ASSIGN_OR_RETURN(std::vector<std::string> tokens, read_ranks(ranks));
  ASSIGN_OR_RETURN(const EncodingRules rules, rules_of(encoding, static_cast<TokenId>(tokens.size())));
  auto parts = std::make_shared<TokenizerParts>();
  ASSIGN_OR_RETURN(parts->pretokenizer, Pretokenizer::of_regex(std::string(rules.pattern)));
  ASSIGN_OR_RETURN(parts->decoder, TokenDecoder::from_json({{"type", "ByteLevel"}}));

  Vocabulary vocabulary(tokens);
  std::vector<uint32_t> rank_of_token(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) rank_of_token[i] = static_cast<uint32_t>(i);
  const std::vector<BpeMerge> merges = merges_of_vocabulary(vocabulary, rank_of_token);
  BpeOptions options;
  options.byte_level = true;
  options.whole_piece_first = true;
  ASSIGN_OR_RETURN(parts->model, Bpe::create(std::move(vocabulary), merges, options));

  // Outside, tokens are written as tokenizer.json writes them: in GPT-2's alphabet.
  for (std::string& token : tokens) token = byte_level_of_bytes(token);
  std::vector<AddedToken> added;
  for (const Special& special : rules.special) {
    if (static_cast<size_t>(special.id) >= tokens.size()) tokens.resize(static_cast<size_t>(special.id) + 1);
    tokens[static_cast<size_t>(special.id)] = special.token;
    AddedToken token;
    token.id = special.id;
    token.content = special.token;
    token.special = true;
    added.push_back(std::move(token));
  }
  parts->tokens = Vocabulary(tokens);
  parts->set_added(std::move(added));
  const auto find = [&](const std::string& name) {
    const TokenId id = parts->tokens.find(name);
    return id == kNoToken ? std::nullopt : std::optional(id);
  };
  parts->eos = find(rules.eos);
  parts->bos = find(rules.bos);
  if (parts->bos) parts->before.push_back(*parts->bos);
  parts->find_end_tokens();
  return Tokenizer(std::move(parts));
}

}  // namespace flywheel::model
