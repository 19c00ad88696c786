#include "model/tokenizer_decoder.h"

#include "model/byte_level.h"
#include "model/tokenizer_model.h"
#include "model/unicode.h"

namespace flywheel::model {
namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) return;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// English tidying that WordPiece decoders do: no space before punctuation and contractions.
void clean_up(std::string& token) {
  static constexpr std::pair<const char*, const char*> kRules[] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) replace_all(token, from, to);
}

}  // namespace

Result<TokenDecoder> TokenDecoder::from_json(const Json& spec) {
  TokenDecoder decoder;
  if (spec.is_null()) {
    decoder.spaces_between_ = true;
    return decoder;
  }
  try {
    RETURN_IF_ERROR(decoder.add(spec));
  } catch (const Json::exception& error) {
    return make_error(ErrorCode::kInvalid, "decoder: {}", error.what());
  }
  return decoder;
}

Result<void> TokenDecoder::add(const Json& spec) {
  const std::string type = spec.at("type");
  if (type == "Sequence") {
    for (const Json& part : spec.at("decoders")) RETURN_IF_ERROR(add(part));
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Strip") {
    add_strip(spec);
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "ByteLevel") {
    steps_.push_back([](std::string& token, bool) {
      if (std::optional<std::string> bytes = bytes_of_byte_level(token)) token = *std::move(bytes);
    });
  } else if (type == "Metaspace") {
    const std::string mark = spec.value("replacement", "\xE2\x96\x81");
    const bool prefix = spec.contains("prepend_scheme") ? spec.at("prepend_scheme") != "never"
                                                        : spec.value("add_prefix_space", true);
    steps_.push_back([mark, prefix](std::string& token, bool first) {
      replace_all(token, mark, first && prefix ? "" : " ");
    });
  } else if (type == "WordPiece") {
    const std::string prefix = spec.value("prefix", "##");
    const bool cleanup = spec.value("cleanup", true);
    steps_.push_back([prefix, cleanup](std::string& token, bool first) {
      if (!first && token.starts_with(prefix)) {
        token.erase(0, prefix.size());
      } else if (!first) {
        token.insert(0, " ");
      }
      if (cleanup) clean_up(token);
    });
  } else if (type == "BPEDecoder") {
    const std::string suffix = spec.value("suffix", "</w>");
    steps_.push_back([suffix](std::string& token, bool) { replace_all(token, suffix, " "); });
    drop_at_end_ = " ";
  } else if (type == "Replace" && spec.at("pattern").contains("String")) {
    const std::string from = spec.at("pattern").at("String"), to = spec.at("content");
    steps_.push_back([from, to](std::string& token, bool) { replace_all(token, from, to); });
  } else {
    return make_error(ErrorCode::kInvalid, "decoder: type {} is not supported", type);
  }
  return {};
}

void TokenDecoder::add_strip(const Json& spec) {
  const std::string content = spec.at("content");
  const size_t start = spec.value("start", size_t{0}), stop = spec.value("stop", size_t{0});
  if (fused_) {
    strip_ = content;
    strip_count_ = start;
    if (stop > 0) drop_at_end_ = content;
    return;
  }
  steps_.push_back([content, start, stop](std::string& token, bool) {
    if (content.empty()) return;
    for (size_t i = 0; i < start && token.starts_with(content); ++i) token.erase(0, content.size());
    for (size_t i = 0; i < stop && token.ends_with(content); ++i) token.resize(token.size() - content.size());
  });
}

std::string TokenDecoder::decode_one(std::string_view token, bool first, bool& is_byte) const {
  const int byte = byte_fallback_ ? byte_of_token(token) : -1;
  is_byte = byte >= 0;
  if (is_byte) return std::string(1, static_cast<char>(byte));
  std::string text(token);
  for (const Step& step : steps_) step(text, first);
  if (spaces_between_ && !first) text.insert(0, " ");
  return text;
}

void TokenDecoder::push(Stream& stream, std::string_view token) const {
  bool is_byte = false;
  std::string text = decode_one(token, stream.first, is_byte);
  stream.first = false;
  if (stream.still_at_start && !text.empty()) {
    while (!strip_.empty() && stream.stripped < strip_count_ && text.starts_with(strip_)) {
      text.erase(0, strip_.size());
      ++stream.stripped;
    }
    if (!text.empty()) stream.still_at_start = false;
  }
  if (text.empty()) return;
  stream.bytes += stream.held;
  stream.held.clear();
  if (!drop_at_end_.empty() && text.ends_with(drop_at_end_)) {
    text.resize(text.size() - drop_at_end_.size());
    stream.held = drop_at_end_;
  }
  stream.bytes += text;
}

void TokenDecoder::finish(Stream& stream) const {
  stream.held.clear();
  stream.finished = true;
}

std::string TokenDecoder::take(Stream& stream) const {
  const size_t tail = stream.finished ? 0 : incomplete_utf8_tail(stream.bytes);
  std::string whole = stream.bytes.substr(0, stream.bytes.size() - tail);
  stream.bytes.erase(0, whole.size());
  if (is_valid_utf8(whole)) return whole;
  if (!byte_fallback_) return repair_utf8(whole);
  std::string out;  // byte tokens that are no character: each is one U+FFFD
  for (size_t at = 0; at < whole.size();) {
    const CodePoint c = decode_utf8(whole, at);
    append_utf8(out, c.value);
    at += c.size_bytes;
  }
  return out;
}

std::string TokenDecoder::bytes_of(std::string_view token) const {
  bool is_byte = false;
  return decode_one(token, false, is_byte);
}

}  // namespace flywheel::model
