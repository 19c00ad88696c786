#include "data/html_guard.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <vector>

#include "base/hash.h"

namespace flywheel::data {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f';
}
bool is_alpha(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Elements that have no content, or that the parser closes by itself when the next one of their kind opens.
bool closes_itself(std::string_view name) {
  static constexpr std::array kNames = {"a",     "area",     "base",  "body", "br",     "button",   "caption",
                                        "col",   "colgroup", "dd",    "dt",   "embed",  "h1",       "h2",
                                        "h3",    "h4",       "h5",    "h6",   "head",   "hr",       "html",
                                        "img",   "input",    "li",    "link", "meta",   "optgroup", "option",
                                        "p",     "param",    "rp",    "rt",   "source", "tbody",    "td",
                                        "tfoot", "th",       "thead", "tr",   "track",  "wbr"};
  return std::binary_search(kNames.begin(), kNames.end(), name);
}
bool raw_text(std::string_view name) {
  return name == "script" || name == "style" || name == "textarea" || name == "title" || name == "xmp" ||
         name == "iframe" || name == "noembed" || name == "noframes";
}

struct Tag {
  std::array<char, 16> letters{};
  size_t name_length = 0;
  size_t end = 0;  // after '>'
  int attributes = 0;
  bool closing = false;
  std::string_view name() const { return {letters.data(), std::min(name_length, letters.size())}; }
};

// The tag at `at` ('<'), quotes respected.
Tag read_tag(std::string_view page, size_t at) {
  Tag tag;
  size_t i = at + 1;
  if (page[i] == '/') tag.closing = true, ++i;
  for (; i < page.size() && !is_space(page[i]) && page[i] != '>' && page[i] != '/'; ++i) {
    if (tag.name_length < tag.letters.size())
      tag.letters[tag.name_length] = static_cast<char>(page[i] | 0x20);
    ++tag.name_length;
  }
  bool in_word = false;
  while (i < page.size() && page[i] != '>') {
    const char c = page[i];
    if ((c == '"' || c == '\'') && i > 0 && page[i - 1] == '=') {
      const size_t close = page.find(c, i + 1);
      i = close == std::string_view::npos ? page.size() : close + 1;
      in_word = false;
      continue;
    }
    const bool separator = is_space(c) || c == '/';
    if (!separator && !in_word) ++tag.attributes;
    in_word = !separator;
    ++i;
  }
  tag.end = std::min(i + 1, page.size());
  return tag;
}

// After the end tag's '<' of a raw text element that was opened before `at`.
size_t raw_text_end(std::string_view page, size_t at, std::string_view name) {
  while ((at = page.find("</", at)) != std::string_view::npos) {
    size_t i = 0;
    while (i < name.size() && at + 2 + i < page.size() && (page[at + 2 + i] | 0x20) == name[i]) ++i;
    if (i == name.size()) return at;
    at += 2;
  }
  return page.size();
}

}  // namespace

std::string_view guard_html(std::string_view page, const HtmlLimits& limits, std::string& storage,
                            HtmlGuardCounts& counts) {
  std::vector<uint64_t> open;                 // names of open elements, hashed
  std::unordered_map<uint64_t, int64_t> cut;  // open elements whose tag was left out
  storage.clear();
  size_t copied = 0;  // the page up to here is in `storage`, once something was cut
  const auto leave_out = [&](size_t begin, size_t end, std::string_view instead) {
    storage.append(page.substr(copied, begin - copied));
    storage.append(instead);
    copied = end;
  };
  for (size_t at = 0; (at = page.find('<', at)) != std::string_view::npos;) {
    if (page.substr(at, 4) == "<!--") {
      const size_t end = page.find("-->", at + 4);
      at = end == std::string_view::npos ? page.size() : end + 3;
      continue;
    }
    if (at + 1 >= page.size() || !(is_alpha(page[at + 1]) ||
                                   (page[at + 1] == '/' && at + 2 < page.size() && is_alpha(page[at + 2])))) {
      ++at;
      continue;
    }
    const Tag tag = read_tag(page, at);
    const std::string_view name = tag.name();
    const size_t begin = at;
    at = tag.end;
    if (raw_text(name)) {
      if (!tag.closing) at = raw_text_end(page, at, name);
      continue;
    }
    if (closes_itself(name)) {
      if (tag.attributes > limits.max_attributes) {
        leave_out(begin, tag.end, "<" + std::string(name) + ">");
        ++counts.attributes_cut;
      }
      continue;
    }
    const uint64_t key = xxh64(name);
    if (tag.closing) {
      if (auto it = cut.find(key); it != cut.end() && it->second > 0) {
        --it->second;
        leave_out(begin, tag.end, "");
        ++counts.tags_cut;
      } else if (auto match = std::find(open.rbegin(), open.rend(), key); match != open.rend()) {
        open.erase(std::prev(match.base()), open.end());
      }
    } else if (static_cast<int>(open.size()) >= limits.max_depth) {
      ++cut[key];
      leave_out(begin, tag.end, "");
      ++counts.tags_cut;
    } else {
      open.push_back(key);
      if (tag.attributes > limits.max_attributes) {
        leave_out(begin, tag.end, "<" + std::string(name) + ">");
        ++counts.attributes_cut;
      }
    }
  }
  if (copied == 0 && storage.empty()) return page;
  storage.append(page.substr(copied));
  return storage;
}

}  // namespace flywheel::data
