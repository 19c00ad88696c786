#include "data/extract.h"

#include <algorithm>
#include <cmath>

#include "data/html_blocks_internal.h"

namespace flywheel::data {
namespace {

// What the page is judged by. Found on pages with known main text; see docs/data.md for the figures.
constexpr double kProseLinkDensity = 0.35;  // above it a paragraph is a list of links
constexpr int kProseChars = 70;             // a paragraph this long is prose without a full stop
constexpr int kSentenceChars = 20;          // with one, this is enough
constexpr double kContainerShare = 0.80;    // a child with this share of its parent's score is the container
constexpr double kHintedShare = 0.50;       // with a class that says so, this is enough
constexpr size_t kLeadBlocks = 20;          // how far before the container its headline is looked for
constexpr int kEnoughChars = 60;            // fewer found: look again without the words of classes
constexpr int kWorthKeepingChars = 400;     // what that has to find, to be more than a footer

bool ends_sentence(std::string_view text) {
  static constexpr std::string_view kEnds[] = {".",  "!", "?",  ":",  ";",  "…", "»", "”", "“",
                                               "\"", ")", "。", "！", "？", "।", "؟", "۔", "」"};
  return std::any_of(std::begin(kEnds), std::end(kEnds),
                     [&](std::string_view end) { return text.ends_with(end); });
}

bool is_prose(const Block& block) {
  if (block.kind == BlockKind::kHeading || block.link_density() > kProseLinkDensity) return false;
  return block.chars >= kProseChars || (block.chars >= kSentenceChars && ends_sentence(block.text));
}

// How much a block speaks for the element that holds it.
double block_score(const Block& block) {
  const double density = block.link_density();
  if (block.kind == BlockKind::kHeading) return 0;
  if (density > 0.6) return -1;
  if (block.kind == BlockKind::kCode) return block.chars;
  if (is_prose(block)) return (block.chars + 20) * (1 - density);
  if (block.kind == BlockKind::kTableRow || block.kind == BlockKind::kListItem)
    return 0.3 * block.chars * (1 - 2 * density);
  return block.chars < 20 ? -2 : 0.2 * block.chars * (1 - 2 * density);
}

class Extraction {
 public:
  Extraction(const HtmlTree& tree, BlockedPage page)
      : nodes_(tree.nodes()), page_(std::move(page)), keep_(page_.blocks.size(), false) {}

  // Which blocks are main text.
  void choose() {
    judge_around();
    const int64_t found = attempt(/*strict=*/true);
    if (found < kEnoughChars) {
      std::vector<bool> strict = keep_;
      if (attempt(/*strict=*/false) < kWorthKeepingChars) keep_ = std::move(strict);
    }
  }
  void choose_all() { keep_.assign(keep_.size(), true); }
  void drop_tables() {
    for (size_t b = 0; b < keep_.size(); ++b) {
      if (page_.blocks[b].kind == BlockKind::kTableRow) keep_[b] = false;
    }
  }

  int64_t kept() const { return std::count(keep_.begin(), keep_.end(), true); }
  std::string render() const;

 private:
  // A class word such as "sidebar" may stand on the element that holds everything. An element that holds much
  // of the page's prose is not around it.
  void judge_around() {
    std::vector<int64_t> prose(nodes_.size(), 0);
    int64_t all = 0;
    for (const Block& block : page_.blocks) {
      if (!is_prose(block)) continue;
      prose[static_cast<size_t>(block.node)] += block.chars;
      all += block.chars;
    }
    for (size_t i = nodes_.size(); i-- > 1;) {
      if (nodes_[i].parent >= 0) prose[static_cast<size_t>(nodes_[i].parent)] += prose[i];
    }
    around_.assign(nodes_.size(), false);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const HtmlNode& node = nodes_[i];
      const bool above = node.parent >= 0 && around_[static_cast<size_t>(node.parent)];
      const bool root = node.tag == GUMBO_TAG_HTML || node.tag == GUMBO_TAG_BODY;
      const bool hinted =
          page_.hints[i] == Hint::kAround && is_block_element(node.tag) && !root && prose[i] * 2 <= all;
      around_[i] = above || hinted;
    }
  }

  bool is_around(const Block& block) const { return around_[static_cast<size_t>(block.node)]; }

  int64_t attempt(bool strict) {
    score(strict);
    container_ = find_container(strict);
    return filter(strict);
  }

  void score(bool strict) {
    score_.assign(nodes_.size(), 0);
    for (const Block& block : page_.blocks) {
      if (strict && is_around(block)) continue;
      score_[static_cast<size_t>(block.node)] += block_score(block);
    }
    for (size_t i = nodes_.size(); i-- > 1;) {
      if (nodes_[i].parent >= 0) score_[static_cast<size_t>(nodes_[i].parent)] += score_[i];
    }
  }

  // From the root down, as long as one child holds most of what its parent holds.
  int32_t find_container(bool strict) const {
    int32_t at = 0;
    for (;;) {
      const double whole = score_[static_cast<size_t>(at)];
      int32_t best = -1;
      // Any element below whose class says that it holds the text; the outermost is met first.
      for (int32_t i = at + 1; strict && i < nodes_[static_cast<size_t>(at)].end; ++i) {
        const auto n = static_cast<size_t>(i);
        const bool says = (page_.hints[n] == Hint::kContent && nodes_[n].tag != GUMBO_TAG_P) ||
                          nodes_[n].tag == GUMBO_TAG_ARTICLE;
        if (says && !around_[n] && score_[n] > 0 && score_[n] >= kHintedShare * whole &&
            (best < 0 || score_[n] > score_[static_cast<size_t>(best)])) {
          best = i;
        }
      }
      for (int32_t i = at + 1; best < 0 && i < nodes_[static_cast<size_t>(at)].end;
           i = nodes_[static_cast<size_t>(i)].end) {
        const HtmlNode& node = nodes_[static_cast<size_t>(i)];
        const bool holds = is_block_element(node.tag) && node.tag != GUMBO_TAG_P &&
                           node.tag != GUMBO_TAG_PRE && node.tag != GUMBO_TAG_LI &&
                           node.tag != GUMBO_TAG_BLOCKQUOTE && node.tag != GUMBO_TAG_UL &&
                           node.tag != GUMBO_TAG_OL && node.tag != GUMBO_TAG_DL && node.tag != GUMBO_TAG_DD;
        if (holds && score_[static_cast<size_t>(i)] > 0 &&
            score_[static_cast<size_t>(i)] >= kContainerShare * whole) {
          best = i;
        }
      }
      if (best < 0) return at;
      at = best;
    }
  }

  // Keeps the blocks of the container that read like text; returns their characters.
  int64_t filter(bool strict) {
    const int32_t begin = container_, end = nodes_[static_cast<size_t>(container_)].end;
    std::vector<size_t> inside;
    keep_.assign(keep_.size(), false);
    for (size_t b = strict ? lead(begin) : 0; b < page_.blocks.size(); ++b) {
      const Block& block = page_.blocks[b];
      if (block.node >= end || (strict && is_around(block))) continue;
      if (block.node >= begin || (block.kind == BlockKind::kHeading ? block.level <= 2 : is_prose(block))) {
        inside.push_back(b);
      }
    }
    drop_link_lists(inside);
    size_t first = 0, last = inside.size();
    if (strict) trim(inside, first, last);
    int64_t chars = 0;
    for (size_t i = first; i < last; ++i) {
      keep_[inside[i]] = true;
      chars += page_.blocks[inside[i]].chars;
    }
    drop_empty_headings();
    return chars;
  }

  // Pages often put the headline and its standfirst before the element with the text: the first block after
  // the last main heading before `begin`, or of the container when there is none near.
  size_t lead(int32_t begin) const {
    size_t first = 0;
    while (first < page_.blocks.size() && page_.blocks[first].node < begin) ++first;
    size_t from = first;
    for (size_t back = 1; back <= std::min<size_t>(first, kLeadBlocks); ++back) {
      const Block& block = page_.blocks[first - back];
      if (block.kind == BlockKind::kHeading && block.level == 1 && !is_around(block)) return first - back;
    }
    return from;
  }

  // Groups (a list, a table, a division) made mostly of links, and single blocks that are nothing but a link.
  void drop_link_lists(std::vector<size_t>& inside) const {
    std::vector<std::pair<int64_t, int64_t>> group(nodes_.size());  // chars, link chars below
    for (const size_t b : inside) {
      auto& count = group[static_cast<size_t>(page_.blocks[b].node)];
      count.first += page_.blocks[b].chars;
      count.second += page_.blocks[b].link_chars;
    }
    for (size_t i = nodes_.size(); i-- > 1;) {
      if (nodes_[i].parent < 0) continue;
      auto& parent = group[static_cast<size_t>(nodes_[i].parent)];
      parent.first += group[i].first, parent.second += group[i].second;
    }
    const auto is_link_list = [&](const Block& block) {
      if (block.kind == BlockKind::kHeading || block.kind == BlockKind::kCode) return false;
      if (block.link_density() > 0.8 && block.kind == BlockKind::kParagraph) return true;
      for (int32_t i = block.node; i > container_; i = nodes_[static_cast<size_t>(i)].parent) {
        const auto& [chars, links] = group[static_cast<size_t>(i)];
        const GumboTag tag = nodes_[static_cast<size_t>(i)].tag;
        const bool list =
            tag == GUMBO_TAG_UL || tag == GUMBO_TAG_OL || tag == GUMBO_TAG_TABLE || tag == GUMBO_TAG_DL;
        if (static_cast<double>(links) > (list ? 0.6 : 0.75) * static_cast<double>(chars)) return true;
      }
      return false;
    };
    std::erase_if(inside, [&](size_t b) { return is_link_list(page_.blocks[b]); });
  }

  // Short leftovers before the first and after the last block that is text: dates, names, "back to overview".
  void trim(const std::vector<size_t>& inside, size_t& first, size_t& last) const {
    const auto stays = [&](size_t i) {
      const Block& block = page_.blocks[inside[i]];
      return is_prose(block) || block.kind == BlockKind::kCode || block.kind == BlockKind::kTableRow ||
             (block.kind == BlockKind::kListItem && block.link_density() < 0.3) ||
             (block.kind == BlockKind::kHeading && i + 1 < inside.size() && block.link_density() < 0.9);
    };
    while (first < last && !stays(first)) ++first;
    while (last > first && (!stays(last - 1) || page_.blocks[inside[last - 1]].kind == BlockKind::kHeading))
      --last;
  }

  // A heading with nothing below it headed something that was dropped.
  void drop_empty_headings() {
    int below = 7;  // the level of the next kept heading that had no text in between; 0: text
    for (size_t b = keep_.size(); b-- > 0;) {
      if (!keep_[b]) continue;
      const Block& block = page_.blocks[b];
      if (block.kind != BlockKind::kHeading) {
        below = 0;
      } else if (below != 0 && block.level >= below) {
        keep_[b] = false;
      } else {
        below = block.level;
      }
    }
  }

  const std::vector<HtmlNode>& nodes_;
  BlockedPage page_;
  std::vector<bool> keep_;
  std::vector<bool> around_;
  std::vector<double> score_;
  int32_t container_ = 0;
};

void append_code(std::string& out, std::string_view code) {
  while (!code.empty() && (code.front() == '\n' || code.front() == '\r')) code.remove_prefix(1);
  while (!code.empty() && (code.back() == '\n' || code.back() == ' ' || code.back() == '\r'))
    code.remove_suffix(1);
  out += "```\n";
  out += code;
  out += "\n```";
}

std::string Extraction::render() const {
  std::string out;
  const Block* before = nullptr;
  for (size_t b = 0; b < keep_.size(); ++b) {
    if (!keep_[b]) continue;
    const Block& block = page_.blocks[b];
    if (before != nullptr) {
      const bool tight = block.kind == before->kind &&
                         (block.kind == BlockKind::kListItem || block.kind == BlockKind::kTableRow);
      out += tight ? "\n" : "\n\n";
    }
    switch (block.kind) {
      case BlockKind::kHeading:
        out += std::string(block.level, '#') + ' ';
        break;
      case BlockKind::kListItem:
        out += std::string(2 * (std::max<size_t>(block.level, 1) - 1), ' ');
        out += block.number > 0 ? std::to_string(block.number) + ". " : "- ";
        break;
      case BlockKind::kQuote:
        out += "> ";
        break;
      case BlockKind::kTableRow:
        out += "| ";
        break;
      case BlockKind::kParagraph:
      case BlockKind::kCode:
        break;
    }
    if (block.kind == BlockKind::kCode) {
      append_code(out, block.text);
    } else {
      out += block.text;
    }
    if (block.kind == BlockKind::kTableRow) out += " |";
    before = &block;
  }
  return out;
}

std::string collapsed(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f';
    if (!space) {
      out += c;
    } else if (!out.empty() && out.back() != ' ') {
      out += ' ';
    }
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace

Result<Extracted> extract_main(std::string_view utf8_html, const ExtractConfig& config) {
  ASSIGN_OR_RETURN(const HtmlTree tree,
                   HtmlTree::parse(utf8_html, {config.max_depth, config.max_attributes}));
  Extracted out;
  out.tags_cut = tree.cut().tags_cut + tree.cut().attributes_cut;
  const std::vector<HtmlNode>& nodes = tree.nodes();
  for (char c : nodes[0].attribute("lang").substr(0, 32)) {
    out.language += static_cast<char>(c >= 'A' && c <= 'Z' ? c | 0x20 : c);
  }
  for (size_t i = 0; i + 1 < nodes.size(); ++i) {
    if (nodes[i].tag == GUMBO_TAG_TITLE && nodes[i + 1].is_text()) {
      out.title = collapsed(nodes[i + 1].text);
      break;
    }
  }
  Extraction extraction(tree, split_blocks(tree));
  if (config.main_content) {
    extraction.choose();
  } else {
    extraction.choose_all();
  }
  if (!config.tables) extraction.drop_tables();
  out.blocks_kept = extraction.kept();
  out.text = extraction.render();
  return out;
}

}  // namespace flywheel::data
