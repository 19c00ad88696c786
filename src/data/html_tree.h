// A page as a flat list of nodes in document order: what extraction walks, without recursion.
//
// Parsed by gumbo (HTML5, every page has a tree). The parser's memory comes from an arena of the calling
// thread, freed at once with the tree; a page that wants more than its limit is an error, not a dead process.
//
// Ownership: the tree's views live as long as the tree; one tree a thread at a time. Threads: any, each its
// own tree. Errors: kInvalid for a page beyond its limits.
//
//   ASSIGN_OR_RETURN(HtmlTree tree, HtmlTree::parse(utf8));
//   for (const HtmlNode& node : tree.nodes()) if (node.is_text()) use(node.text);
#pragma once

#include <gumbo.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "data/html_guard.h"

namespace flywheel::data {

struct HtmlNode {
  GumboTag tag = GUMBO_TAG_UNKNOWN;  // GUMBO_TAG_LAST: a text node
  int32_t parent = -1;
  int32_t end = 0;        // one past the last node of the subtree
  std::string_view text;  // of a text node, entities resolved
  const GumboElement* element = nullptr;
  bool is_text() const { return tag == GUMBO_TAG_LAST; }
  // "" when the element has no such attribute.
  std::string_view attribute(const char* name) const;
  // The name as it was written, for elements that HTML does not know (lower case for those it knows).
  std::string_view name() const;
};

class HtmlTree {
 public:
  static Result<HtmlTree> parse(std::string_view utf8, const HtmlLimits& limits = {});
  HtmlTree(HtmlTree&&) noexcept;
  HtmlTree& operator=(HtmlTree&&) noexcept;
  ~HtmlTree();

  const std::vector<HtmlNode>& nodes() const { return nodes_; }
  // The page had tags or attributes beyond the limits.
  const HtmlGuardCounts& cut() const { return cut_; }

 private:
  HtmlTree();
  struct Memory;
  std::unique_ptr<Memory> memory_;
  std::vector<HtmlNode> nodes_;
  HtmlGuardCounts cut_;
};

}  // namespace flywheel::data
