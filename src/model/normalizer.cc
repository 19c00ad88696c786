#include "model/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

#include "model/sentencepiece_charsmap.h"
#include "model/unicode.h"
#include "model/unicode_regex.h"

namespace flywheel::model {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Rewrites each character by `change`, which returns false to keep it.
void map_characters(AlignedText& text, const std::function<bool(char32_t, std::string&)>& change) {
  Rewriter rewriter(text);
  std::string changed;
  for (size_t at = 0; at < text.text.size();) {
    const CodePoint c = decode_utf8(text.text, at);
    changed.clear();
    if (change(c.value, changed)) {
      rewriter.replace(at, at + c.size_bytes, changed);
    } else {
      rewriter.keep(at, at + c.size_bytes);
    }
    at += c.size_bytes;
  }
  rewriter.finish();
}

const icu::Normalizer2* normal_form(const std::string& name) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* form = name == "NFC"    ? icu::Normalizer2::getNFCInstance(status)
                                 : name == "NFD"  ? icu::Normalizer2::getNFDInstance(status)
                                 : name == "NFKC" ? icu::Normalizer2::getNFKCInstance(status)
                                                  : icu::Normalizer2::getNFKDInstance(status);
  CHECK(U_SUCCESS(status), "ICU's data for {} is missing: {}", name, u_errorName(status));
  return form;
}

icu::StringPiece piece_of(std::string_view text) {
  return {text.data(), static_cast<int32_t>(std::min<size_t>(text.size(), INT32_MAX))};
}

// Normalizes segment by segment, each beginning at a character that no earlier one can combine with, so that
// a segment's result has the segment as its origin.
void normalize(AlignedText& text, const icu::Normalizer2* form) {
  Rewriter rewriter(text);
  const std::string_view all = text.text;
  std::string changed;
  for (size_t begin = 0; begin < all.size();) {
    size_t end = begin + decode_utf8(all, begin).size_bytes;
    bool ascii = static_cast<unsigned char>(all[begin]) < 0x80;
    while (end < all.size()) {
      const CodePoint c = decode_utf8(all, end);
      if (form->hasBoundaryBefore(static_cast<UChar32>(c.value))) break;
      ascii = false;
      end += c.size_bytes;
    }
    const std::string_view segment = all.substr(begin, end - begin);
    UErrorCode status = U_ZERO_ERROR;
    if (ascii || !is_valid_utf8(segment) || form->isNormalizedUTF8(piece_of(segment), status)) {
      rewriter.keep(begin, end);
    } else {
      changed.clear();
      icu::StringByteSink<std::string> sink(&changed);
      form->normalizeUTF8(0, piece_of(segment), sink, nullptr, status);
      CHECK(U_SUCCESS(status), "normalizing {} bytes: {}", segment.size(), u_errorName(status));
      rewriter.replace(begin, end, changed);
    }
    begin = end;
  }
  rewriter.finish();
}

void lower_case(AlignedText& text) {
  map_characters(text, [](char32_t c, std::string& out) {
    if (c == 0x130) {  // the only capital whose small form is two characters
      out = "i\xCC\x87";
      return true;
    }
    const char32_t lower = to_lower(c);
    if (lower == c) return false;
    append_utf8(out, lower);
    return true;
  });
}

void strip(AlignedText& text, bool left, bool right) {
  const std::string_view all = text.text;
  size_t begin = 0, end = 0, at = 0;
  bool leading = left;
  while (at < all.size()) {
    const CodePoint c = decode_utf8(all, at);
    const bool space = has_class(c.value, kSpace);
    if (leading && space) {
      begin = end = at + c.size_bytes;
    } else {
      leading = false;
      if (!space || !right) end = at + c.size_bytes;
    }
    at += c.size_bytes;
  }
  Rewriter rewriter(text);
  rewriter.keep(begin, end);
  rewriter.finish();
}

void replace_matches(AlignedText& text, const std::vector<ByteSpan>& matches, const std::string& to) {
  Rewriter rewriter(text);
  size_t at = 0;
  for (const ByteSpan match : matches) {
    rewriter.keep(at, match.begin);
    rewriter.replace(match.begin, match.end, to);
    at = match.end;
  }
  rewriter.keep(at, text.text.size());
  rewriter.finish();
}

}  // namespace

Result<Normalizer> Normalizer::from_json(const Json& spec) {
  Normalizer normalizer;
  try {
    if (!spec.is_null()) RETURN_IF_ERROR(normalizer.add_json(spec));
  } catch (const Json::exception& error) {
    return make_error(ErrorCode::kInvalid, "normalizer: {}", error.what());
  }
  return normalizer;
}

void Normalizer::apply(AlignedText& text) const {
  for (const Step& step : steps_) step(text);
}

bool Normalizer::leaves(std::string_view text) const {
  return std::all_of(leaves_.begin(), leaves_.end(), [&](const Test& test) { return test(text); });
}

void Normalizer::add(Step step, Test leaves) {
  steps_.push_back(std::move(step));
  leaves_.push_back(std::move(leaves));
}

Result<void> Normalizer::add_json(const Json& spec) {
  const std::string type = spec.at("type");
  if (type == "Sequence") {
    for (const Json& part : spec.at("normalizers")) RETURN_IF_ERROR(add_json(part));
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    add_form(type);
  } else if (type == "Lowercase") {
    add(lower_case);
  } else if (type == "StripAccents") {
    add(
        [](AlignedText& text) {
          map_characters(text, [](char32_t c, std::string&) { return has_class(c, kMark); });
        },
        is_ascii);
  } else if (type == "Strip") {
    const bool left = spec.value("strip_left", true), right = spec.value("strip_right", true);
    add([left, right](AlignedText& text) { strip(text, left, right); });
  } else if (type == "Prepend") {
    add_prepend(spec.at("prepend"));
  } else if (type == "Replace") {
    const Json& pattern = spec.at("pattern");
    const std::string to = spec.at("content");
    if (pattern.contains("String")) {
      add_replace(pattern.at("String"), to);
      return {};
    }
    ASSIGN_OR_RETURN(UnicodeRegex regex, UnicodeRegex::compile(pattern.at("Regex").get<std::string>()));
    add([regex, to](AlignedText& text) { replace_matches(text, regex.matches(text.text), to); });
  } else if (type == "BertNormalizer") {
    add_bert(spec);
  } else if (type == "Precompiled") {
    const std::string encoded = spec.value("precompiled_charsmap", "");
    ASSIGN_OR_RETURN(const std::string charsmap, decode_base64(encoded));
    return add_charsmap(charsmap, true);
  } else if (type == "Nmt") {
    add([](AlignedText& text) {
      map_characters(text, [](char32_t c, std::string& out) {
        const bool dropped =
            (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
        const bool space = c == 9 || c == 10 || c == 12 || c == 13 || c == 0x1680 ||
                           (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                           c == 0xFEFF || c == 0xFFFD;
        if (space) out = " ";
        return dropped || space;
      });
    });
  } else {
    return make_error(ErrorCode::kInvalid, "normalizer: type {} is not supported", type);
  }
  return {};
}

void Normalizer::add_form(const std::string& name) {
  const icu::Normalizer2* form = normal_form(name);
  add([form](AlignedText& text) { normalize(text, form); },
      [form](std::string_view text) {
        if (is_ascii(text)) return true;
        UErrorCode status = U_ZERO_ERROR;
        return text.size() < INT32_MAX && form->isNormalizedUTF8(piece_of(text), status) && U_SUCCESS(status);
      });
}

// As BERT's own tokenizer does it; "strip_accents" unset means: where it also lowers the case.
void Normalizer::add_bert(const Json& spec) {
  if (spec.value("clean_text", true)) {
    add([](AlignedText& text) {
      map_characters(text, [](char32_t c, std::string& out) {
        if (has_class(c, kSpace)) {
          out = " ";
          return true;
        }
        return c == 0 || c == kReplacementCharacter || has_class(c, kControl);
      });
    });
  }
  if (spec.value("handle_chinese_chars", true)) {
    add([](AlignedText& text) {
      map_characters(text, [](char32_t c, std::string& out) {
        if (!has_class(c, kIdeograph)) return false;
        out = " ";
        append_utf8(out, c);
        out += ' ';
        return true;
      });
    });
  }
  const bool lower = spec.value("lowercase", true);
  const Json accents = spec.value("strip_accents", Json());
  if (accents.is_null() ? lower : accents.get<bool>()) {
    add_form("NFD");
    add(
        [](AlignedText& text) {
          map_characters(text, [](char32_t c, std::string&) { return has_class(c, kNonspacing); });
        },
        is_ascii);
  }
  if (lower) add(lower_case);
}

void Normalizer::add_replace(const std::string& from, const std::string& to) {
  if (from.empty()) return;
  add(
      [from, to](AlignedText& text) {
        std::vector<ByteSpan> matches;
        for (size_t at = text.text.find(from); at != std::string::npos;
             at = text.text.find(from, at + from.size())) {
          matches.push_back({at, at + from.size()});
        }
        if (!matches.empty()) replace_matches(text, matches, to);
      },
      [from](std::string_view text) { return text.find(from) == std::string_view::npos; });
}

void Normalizer::add_prepend(const std::string& prefix) {
  add([prefix](AlignedText& text) {
    if (text.text.empty()) return;
    Rewriter rewriter(text);
    rewriter.replace(0, 0, prefix);
    rewriter.keep(0, text.text.size());
    rewriter.finish();
  });
}

Result<void> Normalizer::add_charsmap(std::string_view precompiled, bool by_grapheme) {
  if (precompiled.empty()) return {};
  ASSIGN_OR_RETURN(const Charsmap map, Charsmap::parse(precompiled));
  add([map, by_grapheme](AlignedText& text) { map.apply(text, by_grapheme); });
  return {};
}

void Normalizer::add_squeeze_spaces() {
  add([](AlignedText& text) {
    Rewriter rewriter(text);
    bool space_before = true;
    const size_t end = text.text.find_last_not_of(' ') + 1;
    for (size_t at = 0; at < end; ++at) {
      const bool space = text.text[at] == ' ';
      if (!space || !space_before) rewriter.keep(at, at + 1);
      space_before = space;
    }
    rewriter.finish();
  });
}

}  // namespace flywheel::model
