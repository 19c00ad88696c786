#include "data/html_tree.h"

#include <csetjmp>
#include <cstdlib>

#include "base/check.h"

namespace flywheel::data {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;
constexpr size_t kKeptChunks = 64;                 // an idle thread keeps at most this much for its next page
constexpr size_t kBytesPerInputByte = 96;          // a page of nothing but tags takes about 60
constexpr size_t kMaxPageBytes = size_t{1} << 30;  // gumbo counts in 32 bits

// Bump allocation; nothing is freed one by one.
class Arena {
 public:
  void* allocate(size_t size) {
    size = (size + 15) & ~size_t{15};
    if (used_ + size > limit_) return nullptr;
    if (size > left_) {
      const size_t chunk = std::max(size, kChunkBytes);
      if (chunk == kChunkBytes && next_ < chunks_.size()) {
        at_ = chunks_[next_++].get();
      } else if (chunk == kChunkBytes) {
        chunks_.push_back(std::make_unique_for_overwrite<char[]>(chunk));
        at_ = chunks_[next_++].get();
      } else {  // larger than a chunk: on its own, and the current chunk goes on
        large_.push_back(std::make_unique_for_overwrite<char[]>(size));
        used_ += size;
        return large_.back().get();
      }
      left_ = chunk;
    }
    void* out = at_;
    at_ += size, left_ -= size, used_ += size;
    return out;
  }
  void reset(size_t limit) {
    if (chunks_.size() > kKeptChunks) chunks_.resize(kKeptChunks);
    large_.clear();
    next_ = 0, used_ = 0, left_ = 0, at_ = nullptr;
    limit_ = limit;
  }

 private:
  std::vector<std::unique_ptr<char[]>> chunks_, large_;
  size_t next_ = 0, left_ = 0, used_ = 0, limit_ = 0;
  char* at_ = nullptr;
};

// A free arena of this thread, so that pages reuse warm memory.
thread_local std::unique_ptr<Arena> spare_arena;

struct Parse {
  Arena* arena;
  std::jmp_buf too_large;
};

// Gumbo has no way to fail. Its frames are plain C and its memory is the arena's, so jumping over them leaks
// nothing.
void* allocate(void* user, size_t size) {
  auto* parse = static_cast<Parse*>(user);
  void* out = parse->arena->allocate(size);
  if (out == nullptr) std::longjmp(parse->too_large, 1);
  return out;
}
void release(void*, void*) {}

// Nothing with a destructor lives in this frame: longjmp comes back here.
const GumboOutput* parse_into(Parse* parse, const char* data, size_t size) {
  if (setjmp(parse->too_large) != 0) return nullptr;
  GumboOptions options = kGumboDefaultOptions;
  options.allocator = allocate;
  options.deallocator = release;
  options.userdata = parse;
  options.max_errors = 0;
  return gumbo_parse_with_options(&options, data, size);
}

}  // namespace

struct HtmlTree::Memory {
  std::string cut_page;
  std::unique_ptr<Arena> arena;
  ~Memory() {
    if (arena != nullptr) spare_arena = std::move(arena);
  }
};

HtmlTree::HtmlTree() : memory_(std::make_unique<Memory>()) {}
HtmlTree::HtmlTree(HtmlTree&&) noexcept = default;
HtmlTree& HtmlTree::operator=(HtmlTree&&) noexcept = default;
HtmlTree::~HtmlTree() = default;

std::string_view HtmlNode::attribute(const char* name) const {
  if (element == nullptr) return {};
  const GumboAttribute* found = gumbo_get_attribute(&element->attributes, name);
  return found == nullptr ? std::string_view() : std::string_view(found->value);
}

std::string_view HtmlNode::name() const {
  if (element == nullptr) return {};
  if (tag != GUMBO_TAG_UNKNOWN) return gumbo_normalized_tagname(tag);
  GumboStringPiece piece = element->original_tag;
  gumbo_tag_from_original_text(&piece);
  return {piece.data, piece.length};
}

Result<HtmlTree> HtmlTree::parse(std::string_view utf8, const HtmlLimits& limits) {
  if (utf8.size() > kMaxPageBytes) {
    return make_error(ErrorCode::kInvalid, "a page of {} bytes; at most {} are parsed", utf8.size(),
                      kMaxPageBytes);
  }
  HtmlTree tree;
  const std::string_view page = guard_html(utf8, limits, tree.memory_->cut_page, tree.cut_);
  std::unique_ptr<Arena>& arena = tree.memory_->arena;
  arena = spare_arena != nullptr ? std::move(spare_arena) : std::make_unique<Arena>();
  arena->reset((size_t{32} << 20) + page.size() * kBytesPerInputByte);
  Parse parse{.arena = arena.get(), .too_large = {}};
  const GumboOutput* output = parse_into(&parse, page.data(), page.size());
  if (output == nullptr) {
    return make_error(ErrorCode::kInvalid, "the page's tree takes more than {} bytes for {} bytes of HTML",
                      (size_t{32} << 20) + page.size() * kBytesPerInputByte, page.size());
  }

  struct Open {
    const GumboVector* children;
    unsigned next;
    int32_t index;
  };
  std::vector<Open> open;
  const auto push = [&](const GumboNode* node, int32_t parent) {
    HtmlNode flat;
    flat.parent = parent;
    const auto index = static_cast<int32_t>(tree.nodes_.size());
    if (node->type == GUMBO_NODE_ELEMENT || node->type == GUMBO_NODE_TEMPLATE) {
      flat.tag = node->v.element.tag;
      flat.element = &node->v.element;
      tree.nodes_.push_back(flat);
      open.push_back({&node->v.element.children, 0, index});
    } else if (node->type != GUMBO_NODE_COMMENT) {
      flat.tag = GUMBO_TAG_LAST;
      flat.text = node->v.text.text;
      flat.end = index + 1;
      tree.nodes_.push_back(flat);
    }
  };
  push(output->root, -1);
  while (!open.empty()) {
    Open& top = open.back();
    if (top.next == top.children->length) {
      tree.nodes_[static_cast<size_t>(top.index)].end = static_cast<int32_t>(tree.nodes_.size());
      open.pop_back();
    } else {
      const auto* child = static_cast<const GumboNode*>(top.children->data[top.next++]);
      push(child, top.index);
    }
  }
  return tree;
}

}  // namespace flywheel::data
