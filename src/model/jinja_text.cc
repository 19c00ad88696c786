#include "model/jinja_text.h"

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

icu::UnicodeString from_utf8(std::string_view text) {
  return icu::UnicodeString::fromUTF8(
      {text.data(), static_cast<int32_t>(std::min<size_t>(text.size(), INT32_MAX))});
}
std::string to_utf8(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

bool is_cased(char32_t c) {
  return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_CASED) != 0;
}

}  // namespace

std::string upper_case(std::string_view text) {
  return to_utf8(from_utf8(text).toUpper(icu::Locale::getRoot()));
}
std::string lower_case(std::string_view text) {
  return to_utf8(from_utf8(text).toLower(icu::Locale::getRoot()));
}

std::string title_text(std::string_view text) {
  std::string out;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    if (is_cased(c.value)) {
      append_utf8(out, static_cast<char32_t>(inside ? u_tolower(static_cast<UChar32>(c.value))
                                                    : u_totitle(static_cast<UChar32>(c.value))));
    } else {
      append_utf8(out, c.value);
    }
    inside = is_cased(c.value);
    at += c.size_bytes;
  }
  return out;
}

std::string capitalize_text(std::string_view text) {
  if (text.empty()) return "";
  const CodePoint first = decode_utf8(text, 0);
  std::string out;
  append_utf8(out, static_cast<char32_t>(u_totitle(static_cast<UChar32>(first.value))));
  return out + lower_case(text.substr(first.size_bytes));
}

bool is_lower_text(std::string_view text) {
  bool any = false;
  for (const char32_t c : to_code_points(text)) {
    if (u_isUUppercase(static_cast<UChar32>(c)) || u_istitle(static_cast<UChar32>(c))) return false;
    any |= u_isULowercase(static_cast<UChar32>(c)) != 0;
  }
  return any;
}

bool is_upper_text(std::string_view text) {
  bool any = false;
  for (const char32_t c : to_code_points(text)) {
    if (u_isULowercase(static_cast<UChar32>(c)) || u_istitle(static_cast<UChar32>(c))) return false;
    any |= u_isUUppercase(static_cast<UChar32>(c)) != 0;
  }
  return any;
}

bool is_python_space(char32_t c) {
  return has_class(c, kSpace) || (c >= 0x1C && c <= 0x1F);
}

std::string strip_text(std::string_view text, const std::string* set, bool left, bool right) {
  const std::u32string wanted = set ? to_code_points(*set) : U"";
  const auto goes = [&](char32_t c) {
    return set ? wanted.find(c) != std::u32string::npos : is_python_space(c);
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const CodePoint c = decode_utf8(text, begin);
    if (!goes(c.value)) break;
    begin += c.size_bytes;
  }
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && end - last < 4 && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!goes(decode_utf8(text, last).value)) break;
    end = last;
  }
  return std::string(text.substr(begin, end - begin));
}

std::string replace_text(Renderer& renderer, const std::string& text, const std::string& from,
                         const std::string& to, int64_t count) {
  std::string out;
  size_t at = 0;
  if (from.empty()) {  // between all characters
    for (const char32_t c : to_code_points(text)) {
      if (count-- != 0) out += to, renderer.charge(to.size());
      append_utf8(out, c);
    }
    return count != 0 ? out + to : out;
  }
  for (size_t found = text.find(from); found != std::string::npos && count-- != 0;
       found = text.find(from, at)) {
    out.append(text, at, found - at);
    out += to;
    renderer.charge(to.size());
    at = found + from.size();
  }
  return out.append(text, at);
}

std::vector<std::string> split_spaces(std::string_view text, int64_t most) {
  std::vector<std::string> parts;
  size_t at = 0;
  const auto skip = [&] {
    while (at < text.size()) {
      const CodePoint c = decode_utf8(text, at);
      if (!is_python_space(c.value)) return;
      at += c.size_bytes;
    }
  };
  for (skip(); at < text.size(); skip()) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.push_back(strip_text(text.substr(at), nullptr, false, true));
      break;
    }
    const size_t begin = at;
    while (at < text.size()) {
      const CodePoint c = decode_utf8(text, at);
      if (is_python_space(c.value)) break;
      at += c.size_bytes;
    }
    parts.emplace_back(text.substr(begin, at - begin));
  }
  return parts;
}

std::vector<std::string> split_at(std::string_view text, std::string_view separator, int64_t most,
                                  bool from_right) {
  if (separator.empty()) fail("empty separator");
  std::vector<std::string> parts;
  if (!from_right) {
    size_t at = 0;
    for (size_t found = text.find(separator); found != std::string_view::npos && most-- != 0;
         found = text.find(separator, at)) {
      parts.emplace_back(text.substr(at, found - at));
      at = found + separator.size();
    }
    parts.emplace_back(text.substr(at));
    return parts;
  }
  size_t end = text.size();
  while (most-- != 0 && end >= separator.size()) {
    const size_t found = text.rfind(separator, end - separator.size());
    if (found == std::string_view::npos) break;
    parts.emplace_back(text.substr(found + separator.size(), end - found - separator.size()));
    end = found;
  }
  parts.emplace_back(text.substr(0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace flywheel::model::jinja
