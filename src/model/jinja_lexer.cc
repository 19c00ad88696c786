#include "model/jinja_lexer.h"

#include <algorithm>

#include "model/unicode.h"

namespace flywheel::model::jinja {
namespace {

// Python's white space within ASCII; template tags stand in ASCII text.
bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool begins_name(unsigned char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c >= 0x80;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    // All line ends become \n, and one at the end is not part of the template.
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        source_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        source_ += source[i];
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    JinjaError error(message);
    error.line = line_;
    throw error;
  }
  bool at(std::string_view wanted, size_t from) const {
    return source_.compare(from, wanted.size(), wanted) == 0;
  }
  void push(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }
  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  // Text up to the next tag, then that tag.
  void text() {
    size_t tag = source_.find('{', at_);
    while (tag != std::string::npos && !at("{{", tag) && !at("{%", tag) && !at("{#", tag)) {
      tag = source_.find('{', tag + 1);
    }
    const size_t end = std::min(tag, source_.size());
    std::string between = source_.substr(at_, end - at_);
    if (tag == std::string::npos) {
      emit(std::move(between));
      advance(source_.size());
      return;
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      strip_right(between);
    } else if (sign != '+' && kind != '{') {
      // lstrip_blocks: white space between the line's beginning and the tag goes.
      const size_t line_begin = between.rfind('\n') + 1;
      const bool begins_line = line_begin > 0 || line_starting_;
      if (begins_line &&
          std::all_of(between.begin() + static_cast<std::ptrdiff_t>(line_begin), between.end(), is_space)) {
        between.resize(line_begin);
      }
    }
    emit(std::move(between));
    advance(tag + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    line_starting_ = false;
    if (kind == '#') {
      comment();
    } else if (kind == '{') {
      push(TokenKind::kPrintBegin, "");
      expression("}}");
      push(TokenKind::kPrintEnd, "");
    } else if (!raw()) {
      push(TokenKind::kBlockBegin, "");
      expression("%}");
      push(TokenKind::kBlockEnd, "");
    }
  }
  // Python's rstrip; beyond ASCII too.
  static void strip_right(std::string& text) {
    while (!text.empty()) {
      size_t begin = text.size() - 1;
      while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
      const CodePoint c = decode_utf8(text, begin);
      if (!has_class(c.value, kSpace) && !(c.value >= 0x1C && c.value <= 0x1F)) break;
      text.resize(begin);
    }
  }
  void emit(std::string text) {
    if (!text.empty()) push(TokenKind::kText, std::move(text));
  }

  // After a closing "-%}" all white space goes; after "%}" and "#}" one newline (trim_blocks).
  void after_end(bool strip, bool trim) {
    size_t to = at_;
    if (strip) {
      while (to < source_.size()) {
        const CodePoint c = decode_utf8(source_, to);
        if (!has_class(c.value, kSpace) && !(c.value >= 0x1C && c.value <= 0x1F)) break;
        to += c.size_bytes;
      }
    } else if (trim && to < source_.size() && source_[to] == '\n') {
      ++to;
    }
    line_starting_ = to > at_ && source_[to - 1] == '\n';
    advance(to);
  }

  void comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail("Missing end of comment tag");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2);
    after_end(sign == '-', sign != '+');
  }

  // {% raw %} ... {% endraw %}
  bool raw() {
    size_t i = skip_space(at_);
    if (!at("raw", i)) return false;
    i = skip_space(i + 3);
    const bool strip = at("-%}", i);
    if (!strip && !at("%}", i)) return false;
    advance(i + (strip ? 3 : 2));
    after_end(strip, true);
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos; tag = source_.find("{%", tag + 2)) {
      const char sign = source_[tag + 2];
      size_t name = skip_space(tag + 2 + (sign == '-' || sign == '+' ? 1 : 0));
      if (!at("endraw", name)) continue;
      const size_t end = skip_space(name + 6);
      const bool strip_after = at("-%}", end);
      if (!strip_after && !at("%}", end)) continue;
      std::string between = source_.substr(at_, tag - at_);
      if (sign == '-') {
        strip_right(between);
      } else if (sign != '+') {
        const size_t line_begin = between.rfind('\n') + 1;
        if (line_begin > 0 &&
            std::all_of(between.begin() + static_cast<std::ptrdiff_t>(line_begin), between.end(), is_space)) {
          between.resize(line_begin);
        }
      }
      emit(std::move(between));
      advance(end + (strip_after ? 3 : 2));
      after_end(strip_after, true);
      return true;
    }
    fail("Missing end of raw directive");
  }
  size_t skip_space(size_t i) const {
    while (i < source_.size() && is_space(source_[i])) ++i;
    return i;
  }

  // Tokens up to `end`, which does not count inside brackets.
  void expression(std::string_view end) {
    std::string brackets;
    for (;;) {
      advance(skip_space(at_));
      if (at_ >= source_.size()) fail("unexpected end of template");
      if (brackets.empty()) {
        const bool block = end == "%}";
        if (source_[at_] == '-' && at(end, at_ + 1)) {
          advance(at_ + 3);
          return after_end(true, false);
        }
        if (block && source_[at_] == '+' && at(end, at_ + 1)) {
          advance(at_ + 3);
          return after_end(false, false);
        }
        if (at(end, at_)) {
          advance(at_ + 2);
          return after_end(false, block);
        }
      }
      const char c = source_[at_];
      if (is_digit(c)) {
        number();
      } else if (begins_name(static_cast<unsigned char>(c))) {
        size_t to = at_;
        while (to < source_.size() &&
               (begins_name(static_cast<unsigned char>(source_[to])) || is_digit(source_[to])))
          ++to;
        push(TokenKind::kName, source_.substr(at_, to - at_));
        advance(to);
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        op(brackets);
      }
    }
  }

  void number() {
    size_t to = at_;
    const auto digits = [&] {
      while (to < source_.size() &&
             (is_digit(source_[to]) ||
              (source_[to] == '_' && to + 1 < source_.size() && is_digit(source_[to + 1]))))
        ++to;
    };
    digits();
    bool is_float = false;
    if (to + 1 < source_.size() && source_[to] == '.' && is_digit(source_[to + 1])) {
      is_float = true;
      ++to;
      digits();
    }
    if (to < source_.size() && (source_[to] == 'e' || source_[to] == 'E')) {
      size_t exponent = to + 1;
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
      if (exponent < source_.size() && is_digit(source_[exponent])) {
        is_float = true;
        to = exponent;
        digits();
      }
    }
    std::string text = source_.substr(at_, to - at_);
    std::erase(text, '_');
    push(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    advance(to);
  }

  void string(char quote) {
    std::string text;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] == '\\' && i + 1 < source_.size()) {
        i = escape(i + 1, text);
      } else {
        text += source_[i];
      }
    }
    if (i >= source_.size()) fail("unexpected char '" + std::string(1, quote) + "'");
    push(TokenKind::kString, std::move(text));
    advance(i + 1);
  }

  // Python's escapes; returns the index of the last character read.
  size_t escape(size_t i, std::string& text) {
    static constexpr std::pair<char, char> kSimple[] = {{'n', '\n'},  {'t', '\t'}, {'r', '\r'}, {'\\', '\\'},
                                                        {'\'', '\''}, {'"', '"'},  {'a', '\a'}, {'b', '\b'},
                                                        {'f', '\f'},  {'v', '\v'}};
    const char c = source_[i];
    for (const auto& [name, value] : kSimple) {
      if (c == name) {
        text += value;
        return i;
      }
    }
    if (c == '\n') return i;
    const auto digits = [&](size_t from, size_t most, int base) {
      uint32_t value = 0;
      size_t n = 0;
      for (; n < most && from + n < source_.size(); ++n) {
        const char d = source_[from + n];
        const int digit = is_digit(d)            ? d - '0'
                          : d >= 'a' && d <= 'f' ? d - 'a' + 10
                          : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                                 : 99;
        if (digit >= base) break;
        value = value * static_cast<uint32_t>(base) + static_cast<uint32_t>(digit);
      }
      return std::pair(value, n);
    };
    if (c >= '0' && c <= '7') {
      const auto [value, n] = digits(i, 3, 8);
      append_utf8(text, value);
      return i + n - 1;
    }
    const size_t wanted = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (wanted > 0) {
      const auto [value, n] = digits(i + 1, wanted, 16);
      if (n != wanted || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        fail("truncated or illegal \\ escape");
      append_utf8(text, value);
      return i + wanted;
    }
    text += '\\';
    text += c;
    return i;
  }

  void op(std::string& brackets) {
    for (const std::string_view two : {"//", "**", "==", "!=", "<=", ">="}) {
      if (at(two, at_)) {
        push(TokenKind::kOperator, std::string(two));
        return advance(at_ + 2);
      }
    }
    const char c = source_[at_];
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      fail(fmt::format("unexpected char {} at {}", Value(std::string(1, c)).repr(), at_));
    }
    if (c == '(' || c == '[' || c == '{') brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty()) fail(fmt::format("unexpected '{}'", c));
      if (brackets.back() != c) fail(fmt::format("unexpected '{}', expected '{}'", c, brackets.back()));
      brackets.pop_back();
    }
    push(TokenKind::kOperator, std::string(1, c));
    advance(at_ + 1);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace flywheel::model::jinja
