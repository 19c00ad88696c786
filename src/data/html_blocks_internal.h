// The page's text as blocks in document order: paragraphs, headings, list items, table rows, code. What
// extraction keeps or drops is a block.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/html_hints_internal.h"
#include "data/html_tree.h"

namespace flywheel::data {

enum class BlockKind : uint8_t { kParagraph, kHeading, kListItem, kTableRow, kCode, kQuote };

struct Block {
  BlockKind kind = BlockKind::kParagraph;
  uint8_t level = 0;       // of a heading 1..6; of a list item its depth 1..
  int32_t number = 0;      // of an item of an ordered list, else 0
  int32_t node = 0;        // the block element that holds it
  int32_t chars = 0;       // code points that are not space
  int32_t link_chars = 0;  // of those, inside links
  bool around = false;     // inside an element whose hint is kAround
  std::string text;        // one line (code: as it stands); cells of a row joined by " | "
  double link_density() const { return chars == 0 ? 0 : static_cast<double>(link_chars) / chars; }
};

struct BlockedPage {
  std::vector<Block> blocks;
  std::vector<Hint> hints;  // per node
};

// Text below kNever elements is left out.
BlockedPage split_blocks(const HtmlTree& tree);

}  // namespace flywheel::data
