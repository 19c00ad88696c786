#include "model/pretokenizer.h"

#include "model/unicode.h"
#include "model/unicode_regex.h"

namespace flywheel::model {
namespace {

using Finder = std::function<std::vector<ByteSpan>(std::string_view)>;
enum class Behavior { kRemoved, kIsolated, kWithPrevious, kWithNext, kContiguous };

Result<Behavior> behavior_from(const std::string& name) {
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kWithPrevious;
  if (name == "MergedWithNext") return Behavior::kWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return make_error(ErrorCode::kInvalid, "pre_tokenizer: no behavior {}", name);
}

struct Part {
  ByteSpan span;
  bool match;
};

// One piece cut at its matches, which go where `behavior` says.
void cut(ByteSpan piece, const std::vector<ByteSpan>& matches, bool invert, Behavior behavior,
         std::vector<ByteSpan>& out) {
  std::vector<Part> parts;
  size_t at = piece.begin;
  for (const ByteSpan match : matches) {
    const ByteSpan moved{match.begin + piece.begin, match.end + piece.begin};
    if (moved.begin > at) parts.push_back({{at, moved.begin}, invert});
    parts.push_back({moved, !invert});
    at = moved.end;
  }
  if (at < piece.end) parts.push_back({{at, piece.end}, invert});

  bool last_match = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const bool first = i == 0;
    switch (behavior) {
      case Behavior::kRemoved:
        if (!part.match) out.push_back(part.span);
        break;
      case Behavior::kIsolated:
        out.push_back(part.span);
        break;
      case Behavior::kContiguous:
        if (!first && part.match == last_match) {
          out.back().end = part.span.end;
        } else {
          out.push_back(part.span);
        }
        break;
      case Behavior::kWithPrevious:
        if (!first && part.match && !last_match) {
          out.back().end = part.span.end;
        } else {
          out.push_back(part.span);
        }
        break;
      case Behavior::kWithNext:
        if (!first && !part.match && last_match) {
          out.back().end = part.span.end;
        } else {
          out.push_back(part.span);
        }
        break;
    }
    last_match = part.match;
  }
}

std::function<void(SplitText&)> cutter(Finder find, bool invert, Behavior behavior) {
  return [find = std::move(find), invert, behavior](SplitText& split) {
    std::vector<ByteSpan> out;
    for (const ByteSpan piece : split.pieces) {
      const std::string_view text = std::string_view(split.text.text).substr(piece.begin, piece.size());
      cut(piece, find(text), invert, behavior, out);
    }
    std::erase_if(out, [](ByteSpan span) { return span.size() == 0; });
    split.pieces = std::move(out);
  };
}

// Each character of these classes is a match of its own.
Finder characters(uint16_t classes, std::string_view also = "") {
  return [classes, also](std::string_view text) {
    std::vector<ByteSpan> found;
    for (size_t at = 0; at < text.size();) {
      const CodePoint c = decode_utf8(text, at);
      const bool listed = c.value < 0x80 && also.find(text[at]) != std::string_view::npos;
      if (has_class(c.value, classes) || listed) found.push_back({at, at + c.size_bytes});
      at += c.size_bytes;
    }
    return found;
  };
}

// What Python and the `tokenizers` package call ASCII punctuation includes ASCII's symbols.
constexpr std::string_view kAsciiSymbols = "$+<=>^`|~";

Finder literal(std::string pattern) {
  return [pattern = std::move(pattern)](std::string_view text) {
    std::vector<ByteSpan> found;
    for (size_t at = text.find(pattern); !pattern.empty() && at != std::string_view::npos;
         at = text.find(pattern, at + pattern.size())) {
      found.push_back({at, at + pattern.size()});
    }
    return found;
  };
}

Finder whole_pattern(PatternFn next) {
  return [next](std::string_view text) {
    std::vector<ByteSpan> found;
    for (size_t at = 0; at < text.size();) {
      const size_t end = next(text, at);
      found.push_back({at, end});
      at = end;
    }
    return found;
  };
}

// Rewrites every piece: `prefix` before those for which `wants_prefix`, `from` replaced by `to`.
void rewrite_pieces(SplitText& split, std::string_view prefix,
                    const std::function<bool(std::string_view, bool first)>& wants_prefix, char from,
                    std::string_view to) {
  Rewriter rewriter(split.text);
  std::vector<ByteSpan> pieces;
  for (const ByteSpan piece : split.pieces) {
    const std::string_view text = std::string_view(split.text.text).substr(piece.begin, piece.size());
    const size_t begin = rewriter.written();
    if (wants_prefix(text, piece.begin == 0 && split.at_start)) {
      rewriter.replace(piece.begin, piece.begin, prefix);
    }
    size_t kept = piece.begin;
    for (size_t i = piece.begin; from != '\0' && i < piece.end; ++i) {
      if (split.text.text[i] != from) continue;
      rewriter.keep(kept, i);
      rewriter.replace(i, i + 1, to);
      kept = i + 1;
    }
    rewriter.keep(kept, piece.end);
    pieces.push_back({begin, rewriter.written()});
  }
  rewriter.finish();
  split.pieces = std::move(pieces);
}

}  // namespace

Result<Pretokenizer> Pretokenizer::from_json(const Json& spec) {
  Pretokenizer pretokenizer;
  try {
    if (!spec.is_null()) RETURN_IF_ERROR(pretokenizer.add(spec));
    if (!spec.is_null()) pretokenizer.find_only_pattern(spec);
  } catch (const Json::exception& error) {
    return make_error(ErrorCode::kInvalid, "pre_tokenizer: {}", error.what());
  }
  return pretokenizer;
}

Pretokenizer Pretokenizer::of_pattern(PatternFn pattern) {
  Pretokenizer pretokenizer;
  pretokenizer.steps_.push_back(cutter(whole_pattern(pattern), false, Behavior::kIsolated));
  pretokenizer.only_pattern_ = pattern;
  pretokenizer.byte_level_ = true;
  return pretokenizer;
}

Result<Pretokenizer> Pretokenizer::of_regex(const std::string& regex) {
  if (const PatternFn pattern = find_pattern(regex)) return of_pattern(pattern);
  Json spec = {
      {"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
  ASSIGN_OR_RETURN(Pretokenizer pretokenizer, from_json(spec));
  pretokenizer.byte_level_ = true;
  return pretokenizer;
}

void Pretokenizer::split(SplitText& text) const {
  for (const Step& step : steps_) step(text);
}

Result<void> Pretokenizer::add(const Json& spec) {
  const std::string type = spec.at("type");
  if (byte_level_) {
    return make_error(ErrorCode::kInvalid, "pre_tokenizer: {} after ByteLevel is not supported", type);
  }
  if (type == "Sequence") {
    for (const Json& part : spec.at("pretokenizers")) RETURN_IF_ERROR(add(part));
    return {};
  }
  if (type == "Split") return add_split(spec);
  if (type == "ByteLevel") return add_byte_level(spec);
  if (type == "Metaspace") return add_metaspace(spec);
  if (type == "Digits") {
    const bool single = spec.value("individual_digits", false);
    steps_.push_back(
        cutter(characters(kNumber), false, single ? Behavior::kIsolated : Behavior::kContiguous));
  } else if (type == "WhitespaceSplit") {
    steps_.push_back(cutter(characters(kSpace), false, Behavior::kRemoved));
  } else if (type == "Whitespace") {
    return add_split(
        {{"pattern", {{"Regex", R"(\w+|[^\w\s]+)"}}}, {"behavior", "Removed"}, {"invert", true}});
  } else if (type == "BertPreTokenizer") {
    steps_.push_back(cutter(characters(kSpace), false, Behavior::kRemoved));
    steps_.push_back(cutter(characters(kPunctuation, kAsciiSymbols), false, Behavior::kIsolated));
  } else if (type == "Punctuation") {
    ASSIGN_OR_RETURN(const Behavior behavior, behavior_from(spec.value("behavior", "Isolated")));
    steps_.push_back(cutter(characters(kPunctuation, kAsciiSymbols), false, behavior));
  } else if (type == "CharDelimiterSplit") {
    steps_.push_back(cutter(literal(spec.at("delimiter")), false, Behavior::kRemoved));
  } else {
    return make_error(ErrorCode::kInvalid, "pre_tokenizer: type {} is not supported", type);
  }
  return {};
}

Result<void> Pretokenizer::add_split(const Json& spec) {
  ASSIGN_OR_RETURN(const Behavior behavior, behavior_from(spec.at("behavior")));
  const bool invert = spec.value("invert", false);
  const Json& pattern = spec.at("pattern");
  if (pattern.contains("String")) {
    steps_.push_back(cutter(literal(pattern.at("String")), invert, behavior));
    return {};
  }
  const std::string regex_text = pattern.at("Regex");
  if (const PatternFn known = find_pattern(regex_text)) {
    steps_.push_back(cutter(whole_pattern(known), invert, behavior));
    return {};
  }
  ASSIGN_OR_RETURN(UnicodeRegex regex, UnicodeRegex::compile(regex_text));
  steps_.push_back(cutter([regex](std::string_view text) { return regex.matches(text); }, invert, behavior));
  return {};
}

Result<void> Pretokenizer::add_byte_level(const Json& spec) {
  if (spec.value("add_prefix_space", true)) {
    steps_.push_back([](SplitText& split) {
      rewrite_pieces(
          split, " ", [](std::string_view piece, bool) { return !piece.starts_with(' '); }, '\0', "");
    });
  }
  if (spec.value("use_regex", true)) {
    steps_.push_back(cutter(whole_pattern(find_pattern(kGpt2Pattern)), false, Behavior::kIsolated));
  }
  byte_level_ = true;
  return {};
}

Result<void> Pretokenizer::add_metaspace(const Json& spec) {
  const std::string mark = spec.value("replacement", "\xE2\x96\x81");
  std::string scheme = spec.value("add_prefix_space", true) ? "always" : "never";  // before 0.15
  if (spec.contains("prepend_scheme")) scheme = spec.at("prepend_scheme");
  if (scheme != "always" && scheme != "never" && scheme != "first") {
    return make_error(ErrorCode::kInvalid, "pre_tokenizer: Metaspace has no prepend_scheme {}", scheme);
  }
  steps_.push_back([mark, scheme](SplitText& split) {
    const auto wants_prefix = [&](std::string_view piece, bool first) {
      return (scheme == "always" || (scheme == "first" && first)) && !piece.starts_with(mark) &&
             !piece.starts_with(' ');
    };
    rewrite_pieces(split, mark, wants_prefix, ' ', mark);
  });
  if (spec.value("split", true)) steps_.push_back(cutter(literal(mark), false, Behavior::kWithNext));
  return {};
}

void Pretokenizer::find_only_pattern(const Json& spec) {
  std::vector<Json> steps;
  if (spec.at("type") == "Sequence") {
    for (const Json& step : spec.at("pretokenizers")) steps.push_back(step);
  } else {
    steps.push_back(spec);
  }
  if (steps.empty() || steps.size() > 2 || steps.back().at("type") != "ByteLevel") return;
  const Json& last = steps.back();
  if (last.value("add_prefix_space", true)) return;
  const bool use_regex = last.value("use_regex", true);
  if (steps.size() == 1) {
    if (use_regex) only_pattern_ = find_pattern(kGpt2Pattern);
    return;
  }
  const Json& first = steps.front();
  if (first.at("type") == "Digits" && first.value("individual_digits", false) && use_regex) {
    only_pattern_ = gpt2_pattern_with_single_digits();
  }
  if (first.at("type") != "Split" || use_regex || !first.at("pattern").contains("Regex")) return;
  // These patterns match everything, so that keeping the matches and dropping the rest is the same.
  const bool isolated = first.at("behavior") == "Isolated" && !first.value("invert", false);
  const bool kept = first.at("behavior") == "Removed" && first.value("invert", false);
  if (isolated || kept) only_pattern_ = find_pattern(first.at("pattern").at("Regex").get<std::string>());
}

}  // namespace flywheel::model
