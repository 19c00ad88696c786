#include <algorithm>

#include "data/html_blocks_internal.h"

namespace flywheel::data {
namespace {

bool is_html_space(char c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f';
}

// A table whose cells are data, not the page's columns: it has rows of several cells, none of which holds a
// table or a page's worth of structure.
std::vector<bool> find_data_tables(const std::vector<HtmlNode>& nodes) {
  struct Count {
    int rows = 0, cells = 0, structure = 0;
    int64_t chars = 0;
    bool nested = false;
  };
  std::vector<Count> counts(nodes.size());
  std::vector<int32_t> table(nodes.size(), -1);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const HtmlNode& node = nodes[i];
    const int32_t above = node.parent < 0 ? -1 : table[static_cast<size_t>(node.parent)];
    table[i] = node.tag == GUMBO_TAG_TABLE ? static_cast<int32_t>(i) : above;
    if (above < 0) continue;
    Count& count = counts[static_cast<size_t>(above)];
    switch (node.tag) {
      case GUMBO_TAG_TABLE:
        count.nested = true;
        break;
      case GUMBO_TAG_TR:
        ++count.rows;
        break;
      case GUMBO_TAG_TD:
      case GUMBO_TAG_TH:
        ++count.cells;
        break;
      case GUMBO_TAG_H1:
      case GUMBO_TAG_H2:
      case GUMBO_TAG_H3:
      case GUMBO_TAG_PRE:
      case GUMBO_TAG_FORM:
      case GUMBO_TAG_ARTICLE:
      case GUMBO_TAG_IFRAME:
        count.structure += 1;
        break;
      case GUMBO_TAG_LAST:
        count.chars += static_cast<int64_t>(node.text.size());
        break;
      default:
        break;
    }
  }
  std::vector<bool> data(nodes.size(), false);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const Count& count = counts[i];
    data[i] = nodes[i].tag == GUMBO_TAG_TABLE && !count.nested && count.rows >= 2 &&
              count.cells >= 2 * count.rows && count.structure == 0 &&
              count.chars / std::max(count.cells, 1) < 400 && nodes[i].attribute("role") != "presentation";
  }
  return data;
}

class Splitter {
 public:
  Splitter(const HtmlTree& tree, BlockedPage& page)
      : nodes_(tree.nodes()), page_(page), data_table_(find_data_tables(nodes_)) {
    page_.hints.assign(nodes_.size(), Hint::kNone);
  }

  void run() {
    for (size_t i = 0; i < nodes_.size();) {
      while (!open_.empty() && nodes_[static_cast<size_t>(open_.back())].end <= static_cast<int32_t>(i))
        leave();
      const HtmlNode& node = nodes_[i];
      if (node.is_text()) {
        append_text(node.text);
        ++i;
        continue;
      }
      const Hint hint = page_.hints[i] = hints_.of(node);
      if (hint == Hint::kNever) {
        if (is_block_element(node.tag)) flush();
        i = static_cast<size_t>(node.end);
        continue;
      }
      enter(static_cast<int32_t>(i));
      ++i;
    }
    while (!open_.empty()) leave();
    flush();
  }

 private:
  const HtmlNode& node(int32_t i) const { return nodes_[static_cast<size_t>(i)]; }

  // An anchor without an address is a target. (Written `<a id="x"/>` it stays open over what follows.)
  bool is_link(int32_t i) const { return node(i).tag == GUMBO_TAG_A && !node(i).attribute("href").empty(); }

  void enter(int32_t i) {
    const GumboTag tag = node(i).tag;
    open_.push_back(i);
    if (page_.hints[static_cast<size_t>(i)] == Hint::kAround) {
      if (!is_block_element(tag) && around_ == 0 && !text_.empty() && text_.back() != ' ') text_ += ' ';
      if (is_block_element(tag)) ++around_;
    }
    if (is_link(i)) ++links_;
    if (tag == GUMBO_TAG_TABLE && data_table_[static_cast<size_t>(i)]) {
      flush();
      ++rows_only_;
    }
    if (rows_only_ > 0 && tag != GUMBO_TAG_TABLE) {
      if (tag == GUMBO_TAG_TR || tag == GUMBO_TAG_CAPTION) flush();
      if (tag == GUMBO_TAG_TD || tag == GUMBO_TAG_TH) {
        if (cells_++ > 0) {
          while (!text_.empty() && text_.back() == ' ') text_.pop_back();
          text_ += " | ";
        }
      } else if (is_block_element(tag) || tag == GUMBO_TAG_BR) {
        space();
      }
      return;
    }
    if (tag == GUMBO_TAG_BR) {
      line_break();
    } else if (is_block_element(tag)) {
      flush();
      if (tag == GUMBO_TAG_PRE || tag == GUMBO_TAG_LISTING || tag == GUMBO_TAG_XMP ||
          tag == GUMBO_TAG_PLAINTEXT) {
        ++code_;
      }
      if (tag == GUMBO_TAG_UL || tag == GUMBO_TAG_OL) lists_.push_back({tag == GUMBO_TAG_OL, 0});
      if (tag == GUMBO_TAG_LI && !lists_.empty()) ++lists_.back().items, new_item_ = true;
      if (tag == GUMBO_TAG_BLOCKQUOTE) ++quotes_;
    }
  }

  void leave() {
    const int32_t i = open_.back();
    const GumboTag tag = node(i).tag;
    const bool block = is_block_element(tag);
    if (block &&
        (rows_only_ == 0 || tag == GUMBO_TAG_TR || tag == GUMBO_TAG_CAPTION || tag == GUMBO_TAG_TABLE)) {
      flush();
    } else if (block) {
      space();
    }
    open_.pop_back();
    if (is_link(i)) --links_;
    if (tag == GUMBO_TAG_TABLE && data_table_[static_cast<size_t>(i)]) --rows_only_;
    if (page_.hints[static_cast<size_t>(i)] == Hint::kAround && block) --around_;
    if (rows_only_ > 0) return;
    if (tag == GUMBO_TAG_PRE || tag == GUMBO_TAG_LISTING || tag == GUMBO_TAG_XMP ||
        tag == GUMBO_TAG_PLAINTEXT)
      --code_;
    if ((tag == GUMBO_TAG_UL || tag == GUMBO_TAG_OL) && !lists_.empty()) lists_.pop_back();
    if (tag == GUMBO_TAG_BLOCKQUOTE) --quotes_;
  }

  void space() {
    if (!text_.empty() && text_.back() != ' ') text_ += ' ';
  }

  void line_break() {
    if (code_ > 0) {
      text_ += '\n';
    } else if (after_break_) {
      flush();  // two in a row: a new paragraph
    } else {
      space();
      after_break_ = true;
    }
  }

  void append_text(std::string_view text) {
    // A link to the place itself, as documentation generators put behind headings.
    if (links_ > 0 && (text == "\xC2\xB6" || text == "#" || text == "\xC2\xA7" || text == "\xEF\x83\x81"))
      return;
    int32_t chars = 0;
    if (code_ > 0) {
      for (const char c : text)
        chars += !is_html_space(c) && (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
      text_.append(text);
    } else {
      for (const char c : text) {
        if (is_html_space(c)) {
          if (!text_.empty() && text_.back() != ' ') text_ += ' ';
        } else {
          text_ += c;
          chars += (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
        }
      }
    }
    if (chars > 0) after_break_ = false;
    chars_ += chars;
    if (links_ > 0) link_chars_ += chars;
  }

  void flush() {
    after_break_ = false;
    cells_ = 0;
    if (chars_ == 0) {
      text_.clear();
      return;
    }
    Block block;
    block.chars = chars_, block.link_chars = link_chars_;
    block.around = around_ > 0;
    // The innermost block element that is open holds it.
    size_t depth = open_.size();
    while (depth > 0 && !is_block_element(node(open_[depth - 1]).tag)) --depth;
    block.node = depth > 0 ? open_[depth - 1] : 0;
    const GumboTag tag = node(block.node).tag;
    if (code_ > 0) {
      block.kind = BlockKind::kCode;
    } else if (tag >= GUMBO_TAG_H1 && tag <= GUMBO_TAG_H6) {
      block.kind = BlockKind::kHeading;
      block.level = static_cast<uint8_t>(1 + tag - GUMBO_TAG_H1);
    } else if (rows_only_ > 0) {
      block.kind = BlockKind::kTableRow;
    } else if (!lists_.empty() && new_item_) {
      block.kind = BlockKind::kListItem;
      block.level = static_cast<uint8_t>(std::min<size_t>(lists_.size(), 20));
      block.number = lists_.back().ordered ? lists_.back().items : 0;
      new_item_ = false;
    } else if (quotes_ > 0) {
      block.kind = BlockKind::kQuote;
    }
    if (block.kind != BlockKind::kCode) {
      while (!text_.empty() && text_.back() == ' ') text_.pop_back();
    }
    block.text = std::move(text_);
    text_.clear();
    chars_ = link_chars_ = 0;
    page_.blocks.push_back(std::move(block));
  }

  struct List {
    bool ordered;
    int32_t items;
  };
  const std::vector<HtmlNode>& nodes_;
  BlockedPage& page_;
  Hints hints_;
  std::vector<bool> data_table_;
  std::vector<int32_t> open_;
  std::vector<List> lists_;
  std::string text_;
  int32_t chars_ = 0, link_chars_ = 0;
  int links_ = 0, code_ = 0, quotes_ = 0, around_ = 0, rows_only_ = 0, cells_ = 0;
  bool after_break_ = false, new_item_ = false;
};

}  // namespace

BlockedPage split_blocks(const HtmlTree& tree) {
  BlockedPage page;
  Splitter(tree, page).run();
  return page;
}

}  // namespace flywheel::data
