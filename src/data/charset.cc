#include "data/charset.h"

#include <unicode/ucnv.h>
#include <unicode/ucsdet.h>

#include <algorithm>
#include <cctype>
#include <memory>

namespace flywheel::data {
namespace {

constexpr size_t kDeclarationBytes = 4096;
constexpr size_t kGuessBytes = 64 * 1024;  // the statistics of a longer text are no better

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// The name after "charset=" or "encoding=" at `at`, quoted or not.
std::string name_after_equals(std::string_view head, size_t at) {
  while (at < head.size() && (head[at] == ' ' || head[at] == '=')) ++at;
  while (at < head.size() && (head[at] == '"' || head[at] == '\'')) ++at;
  size_t end = at;
  while (end < head.size() && (std::isalnum(static_cast<unsigned char>(head[end])) || head[end] == '-' ||
                               head[end] == '_' || head[end] == ':')) {
    ++end;
  }
  return std::string(head.substr(at, end - at));
}

// Names that mean another encoding than they say, as every browser treats them.
std::string effective(const std::string& name) {
  if (name == "iso-8859-1" || name == "iso8859-1" || name == "latin1" || name == "ascii" ||
      name == "us-ascii") {
    return "windows-1252";
  }
  if (name == "iso-8859-9") return "windows-1254";
  if (name == "gb2312" || name == "gbk") return "gb18030";
  if (name == "ks_c_5601-1987" || name == "euc-kr") return "windows-949";
  if (name == "shift_jis" || name == "sjis" || name == "x-sjis") return "windows-31j";
  if (name == "utf8") return "utf-8";
  if (name.starts_with("utf-16") || name.starts_with("utf-32"))
    return "utf-8";  // declared in ASCII bytes: no
  return name;
}

// `bytes` with each invalid sequence replaced (the longest invalid prefix of a character counts once).
std::string repair_utf8(std::string_view bytes, int64_t& replacements) {
  std::string out;
  out.reserve(bytes.size() + 16);
  while (!bytes.empty()) {
    const size_t good = valid_utf8_prefix(bytes);
    out.append(bytes.substr(0, good));
    bytes.remove_prefix(good);
    if (bytes.empty()) break;
    out += "\xEF\xBF\xBD";
    ++replacements;
    size_t skip = 1;
    while (skip < 4 && skip < bytes.size() && (static_cast<uint8_t>(bytes[skip]) & 0xC0) == 0x80 &&
           static_cast<uint8_t>(bytes[0]) >= 0xC0) {
      ++skip;
    }
    bytes.remove_prefix(skip);
  }
  return out;
}

bool convert(std::string_view bytes, const std::string& charset, DecodedText& out) {
  UErrorCode status = U_ZERO_ERROR;
  std::unique_ptr<UConverter, decltype(&ucnv_close)> from(ucnv_open(charset.c_str(), &status), &ucnv_close);
  if (U_FAILURE(status)) return false;
  // An escape sequence in HZ or ISO-2022 hides markup from what looks at the bytes; those are not decoded.
  if (ucnv_getType(from.get()) == UCNV_HZ || ucnv_getType(from.get()) == UCNV_UTF7) return false;
  std::unique_ptr<UConverter, decltype(&ucnv_close)> to(ucnv_open("utf-8", &status), &ucnv_close);
  if (U_FAILURE(status)) return false;
  out.utf8.clear();
  std::string buffer(std::min<size_t>(bytes.size() * 4 + 64, size_t{1} << 20), '\0');
  std::vector<UChar> pivot(4096);
  UChar *pivot_source = pivot.data(), *pivot_target = pivot.data();
  const char *source = bytes.data(), *source_end = source + bytes.size();
  UBool reset = true;
  do {
    status = U_ZERO_ERROR;
    char* target = buffer.data();
    ucnv_convertEx(to.get(), from.get(), &target, buffer.data() + buffer.size(), &source, source_end,
                   pivot.data(), &pivot_source, &pivot_target, pivot.data() + pivot.size(), reset,
                   /*flush=*/true, &status);
    reset = false;
    out.utf8.append(buffer.data(), static_cast<size_t>(target - buffer.data()));
  } while (status == U_BUFFER_OVERFLOW_ERROR);
  if (U_FAILURE(status)) return false;
  out.charset = charset;
  for (size_t at = 0; (at = out.utf8.find("\xEF\xBF\xBD", at)) != std::string::npos; at += 3)
    ++out.replacements;
  return true;
}

std::string guess(std::string_view bytes, bool html) {
  UErrorCode status = U_ZERO_ERROR;
  std::unique_ptr<UCharsetDetector, decltype(&ucsdet_close)> detector(ucsdet_open(&status), &ucsdet_close);
  if (U_FAILURE(status)) return "windows-1252";
  bytes = bytes.substr(0, kGuessBytes);
  ucsdet_setText(detector.get(), bytes.data(), static_cast<int32_t>(bytes.size()), &status);
  ucsdet_enableInputFilter(detector.get(), html);
  const UCharsetMatch* match = ucsdet_detect(detector.get(), &status);
  if (U_FAILURE(status) || match == nullptr) return "windows-1252";
  const char* name = ucsdet_getName(match, &status);
  return U_FAILURE(status) ? "windows-1252" : effective(lower(name));
}

}  // namespace

size_t valid_utf8_prefix(std::string_view bytes) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  const size_t n = bytes.size();
  const auto tail = [&](size_t i) { return i < n && (data[i] & 0xC0) == 0x80; };
  size_t i = 0;
  while (i < n) {
    const uint8_t c = data[i];
    if (c < 0x80) {
      ++i;
    } else if (c >= 0xC2 && c <= 0xDF) {
      if (!tail(i + 1)) return i;
      i += 2;
    } else if (c >= 0xE0 && c <= 0xEF) {
      if (!tail(i + 1) || !tail(i + 2)) return i;
      if ((c == 0xE0 && data[i + 1] < 0xA0) || (c == 0xED && data[i + 1] >= 0xA0)) return i;
      i += 3;
    } else if (c >= 0xF0 && c <= 0xF4) {
      if (!tail(i + 1) || !tail(i + 2) || !tail(i + 3)) return i;
      if ((c == 0xF0 && data[i + 1] < 0x90) || (c == 0xF4 && data[i + 1] >= 0x90)) return i;
      i += 4;
    } else {
      return i;
    }
  }
  return n;
}

std::string declared_charset(std::string_view html) {
  const std::string head = lower(html.substr(0, kDeclarationBytes));
  if (head.starts_with("<?xml")) {
    const size_t end = head.find("?>"), at = head.find("encoding");
    if (at != std::string::npos && at < end) return name_after_equals(head, at + 8);
  }
  for (size_t meta = 0; (meta = head.find("<meta", meta)) != std::string::npos; meta += 5) {
    const size_t end = std::min(head.find('>', meta), head.size());
    const size_t at = head.find("charset", meta);
    if (at < end && head.find('=', at) < end) return name_after_equals(head, at + 7);
  }
  return "";
}

DecodedText decode_text(std::string_view bytes, DeclaredCharset declared) {
  DecodedText out;
  if (bytes.starts_with("\xFF\xFE") && convert(bytes.substr(2), "utf-16le", out)) return out;
  if (bytes.starts_with("\xFE\xFF") && convert(bytes.substr(2), "utf-16be", out)) return out;
  const bool marked = bytes.starts_with("\xEF\xBB\xBF");
  if (marked) bytes.remove_prefix(3);
  if (marked || valid_utf8_prefix(bytes) == bytes.size()) {
    out.charset = "utf-8";
    out.utf8 = repair_utf8(bytes, out.replacements);
    // ISO-2022-JP is ASCII with escape sequences: valid UTF-8, and not what was meant.
    if (!marked && bytes.find("\x1b$") != std::string_view::npos) convert(bytes, "iso-2022-jp", out);
    return out;
  }
  const std::string name =
      declared == DeclaredCharset::kHtml ? effective(declared_charset(bytes)) : std::string();
  if (name == "utf-8") {
    out.utf8 = repair_utf8(bytes, out.replacements);
    out.charset = "utf-8";
    // A few broken characters in UTF-8 stay broken; where most are, the declaration is wrong.
    int64_t high = 0;
    for (const char c : bytes) high += (static_cast<uint8_t>(c) & 0xC0) == 0xC0 ? 1 : 0;
    if (out.replacements * 2 <= high) return out;
    out = {};
  } else if (!name.empty() && convert(bytes, name, out)) {
    return out;
  }
  out = {};
  if (convert(bytes, guess(bytes, declared == DeclaredCharset::kHtml), out)) return out;
  out = {};
  out.charset = "utf-8";
  out.utf8 = repair_utf8(bytes, out.replacements);
  return out;
}

}  // namespace flywheel::data
