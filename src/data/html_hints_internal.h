// What an element's tag, class, id and role say about its content, in words that many sites use.
#pragma once

#include <string>
#include <unordered_map>

#include "data/html_tree.h"

namespace flywheel::data {

enum class Hint : uint8_t {
  kNone,
  kContent,  // "article-body", "entry-content", role=main, ...: probably holds the text
  kAround,   // "sidebar", "comments", "share", ...: probably not the text
  kNever,    // scripts, controls, hidden: no text of the page at all
};

// Remembers what it found out about a class, since pages repeat theirs.
class Hints {
 public:
  Hint of(const HtmlNode& node);

 private:
  std::unordered_map<std::string, Hint> known_;
  std::string key_;
};

// Elements that start and end a paragraph.
bool is_block_element(GumboTag tag);

}  // namespace flywheel::data
