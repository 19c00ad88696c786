#include "model/pickle.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "model/little_endian.h"
#include "model/pickle_globals.h"
#include "model/pickle_opcodes.h"

namespace flywheel::model {
namespace {

using Kind = PickleNode::Kind;

constexpr size_t kMostBytesOfText = size_t{1} << 30;
// What an honest file needs at most: an opcode makes a node, a reference to it, a copy of that (torch.Size of
// a tuple) and an entry of the memo. A file that copies one list again and again needs more.
constexpr size_t kValuesPerByte = 4;

bool is_sequence(const PickleNode& node) {
  return node.is(Kind::kList) || node.is(Kind::kTuple) || node.is(Kind::kSet);
}

// A name of the file, fit for a message.
std::string quoted(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 100)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out;
}

}  // namespace

const PickleNode* PickleNode::get(std::string_view key) const {
  const PickleNode* dict = this;
  if (kind == Kind::kObject) dict = has_state ? items[2] : nullptr;
  if (dict == nullptr || !dict->is(Kind::kDict)) return nullptr;
  for (size_t i = dict->items.size(); i >= 2; i -= 2) {  // of a key twice, the last counts
    const PickleNode& found = *dict->items[i - 2];
    if (found.is(Kind::kString) && found.text == key) return dict->items[i - 1];
  }
  return nullptr;
}

class PickleMachine {
 public:
  PickleMachine(PickleDocument& document, std::string_view bytes, const std::string& name,
                const PickleLimits& limits)
      : document_(document),
        bytes_(bytes),
        name_(name),
        limits_(limits),
        most_(std::min(limits.max_values, 4096 + kValuesPerByte * bytes.size())) {}

  Result<void> run() {
    if (bytes_.size() < 2 || static_cast<uint8_t>(bytes_[0]) != kProto) {
      return make_error(ErrorCode::kInvalid, "{}: not a pickle of protocol 2 to 5", name_);
    }
    while (!stopped_) {
      op_at_ = at_;
      if (at_ == bytes_.size()) return corrupt("it ends without its STOP: it was cut short");
      RETURN_IF_ERROR(step(static_cast<uint8_t>(bytes_[at_++])));
      if (spent_ + document_.nodes_.size() > most_) return refuse("it unfolds to more than {} values", most_);
    }
    document_.size_bytes_ = at_;
    return {};
  }

 private:
  template <typename... Args>
  Error corrupt(fmt::format_string<Args...> format, Args&&... args) const {
    return make_error(ErrorCode::kCorrupt, "{}: its pickle at byte {}: {}", name_, op_at_,
                      fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  Error refuse(fmt::format_string<Args...> format, Args&&... args) const {
    return make_error(ErrorCode::kInvalid, "{}: refused, nothing of it was run: its pickle at byte {}: {}",
                      name_, op_at_, fmt::format(format, std::forward<Args>(args)...));
  }

  // --- bytes ---
  Result<std::string_view> take(uint64_t count) {
    if (count > bytes_.size() - at_) {
      return corrupt("it needs {} bytes more but {} follow: it was cut short", count, bytes_.size() - at_);
    }
    const std::string_view taken = bytes_.substr(at_, count);
    at_ += count;
    return taken;
  }
  Result<uint64_t> number(size_t width) {
    ASSIGN_OR_RETURN(const std::string_view raw, take(width));
    return little_endian(raw);
  }
  Result<std::string_view> counted(size_t width) {
    ASSIGN_OR_RETURN(const uint64_t count, number(width));
    if (count > kMostBytesOfText) return corrupt("a text of {} bytes", count);
    return take(count);
  }
  Result<std::string_view> line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) return corrupt("a name without its end");
    ASSIGN_OR_RETURN(const std::string_view text, take(end - at_));
    ++at_;
    return text;
  }

  // --- stack ---
  PickleNode* make(Kind kind) {
    PickleNode& node = document_.nodes_.emplace_back();
    node.kind = kind;
    return &node;
  }
  PickleNode* push(PickleNode* node) {
    stack_.push_back(node);
    return node;
  }
  PickleNode* push(Kind kind) { return push(make(kind)); }
  // Above the last mark, or above nothing.
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Result<PickleNode*> pop() {
    if (stack_.size() <= floor()) return corrupt("it takes a value that is not there");
    PickleNode* top = stack_.back();
    stack_.pop_back();
    return top;
  }
  Result<PickleNode*> top() const {
    if (stack_.size() <= floor()) return corrupt("it takes a value that is not there");
    return stack_.back();
  }
  Result<std::vector<PickleNode*>> pop_to_mark() {
    if (marks_.empty()) return corrupt("it looks for a mark that is not there");
    std::vector<PickleNode*> values(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }
  Result<void> add(PickleNode* to, const PickleNode* item) {
    to->depth = std::max(to->depth, item->depth + 1);
    if (to->depth > limits_.max_depth)
      return refuse("values are nested more than {} deep", limits_.max_depth);
    to->items.push_back(item);
    ++spent_;
    return {};
  }
  Result<void> add_all(PickleNode* to, const std::vector<PickleNode*>& items) {
    for (const PickleNode* item : items) RETURN_IF_ERROR(add(to, item));
    return {};
  }

  // --- memo ---
  Result<void> put(uint64_t key) {
    ASSIGN_OR_RETURN(PickleNode * value, top());
    memo_[key] = value;
    ++spent_;
    return {};
  }
  Result<void> get(uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end()) return corrupt("it recalls value {}, which it never kept", key);
    push(found->second);
    return {};
  }

  // --- what opcodes share ---
  Result<void> push_text(Kind kind, Result<std::string_view> text) {
    if (!text.ok()) return text.error();
    push(kind)->text = text.value();
    return {};
  }
  Result<void> push_integer(int64_t value, Kind kind = Kind::kInt) {
    push(kind)->integer = value;
    return {};
  }
  // Little-endian two's complement of any width; torch's magic number is the only one wider than 8 bytes.
  Result<void> push_long(Result<std::string_view> raw) {
    if (!raw.ok()) return raw.error();
    if (raw->size() > 8) {
      push(Kind::kBytes)->text = *raw;
      return {};
    }
    const bool negative = !raw->empty() && (raw->back() & 0x80) != 0;
    return push_integer(static_cast<int64_t>(little_endian(*raw, negative ? ~uint64_t{0} : 0)));
  }
  Result<void> push_tuple(size_t count) {
    std::vector<PickleNode*> values(count);
    for (size_t i = count; i-- > 0;) {
      ASSIGN_OR_RETURN(values[i], pop());
    }
    return add_all(push(Kind::kTuple), values);
  }
  Result<void> push_from_mark(Kind kind) {
    ASSIGN_OR_RETURN(const std::vector<PickleNode*> values, pop_to_mark());
    if (kind == Kind::kDict && values.size() % 2 != 0) return corrupt("a key without a value");
    return add_all(push(kind), values);
  }
  Result<void> append(const std::vector<PickleNode*>& items) {
    ASSIGN_OR_RETURN(PickleNode * list, top());
    if (!list->is(Kind::kList)) return corrupt("it appends to what is no list");
    return add_all(list, items);
  }
  Result<void> set_items(const std::vector<PickleNode*>& items) {
    ASSIGN_OR_RETURN(PickleNode * dict, top());
    if (!dict->is(Kind::kDict)) return corrupt("it sets items of what is no dict");
    if (items.size() % 2 != 0) return corrupt("a key without a value");
    return add_all(dict, items);
  }

  Result<void> push_global(std::string_view module, std::string_view name) {
    const PickleGlobal global = find_pickle_global(module, name);
    if (global.use == PickleUse::kRefused) {
      return refuse(
          "names {}.{}, which is none of those that checkpoints are made of; if you trust the file, load it "
          "in Python and save its state_dict() alone, as safetensors",
          quoted(module), quoted(name));
    }
    PickleNode* node = push(Kind::kGlobal);
    node->text = global.name;
    node->integer = static_cast<int64_t>(global.use);
    return {};
  }

  // callable(*arguments): a node that says so.
  Result<void> call() {
    ASSIGN_OR_RETURN(PickleNode * arguments, pop());
    ASSIGN_OR_RETURN(PickleNode * callable, pop());
    if (!callable->is(Kind::kGlobal)) return refuse("calls what is no name");
    if (!arguments->is(Kind::kTuple)) return corrupt("a call whose arguments are no tuple");
    const PickleNode* first = arguments->items.empty() ? nullptr : arguments->items[0];
    switch (static_cast<PickleUse>(callable->integer)) {
      case PickleUse::kCall: {
        PickleNode* object = push(Kind::kObject);
        RETURN_IF_ERROR(add(object, callable));
        return add(object, arguments);
      }
      case PickleUse::kTuple:
        return convert(Kind::kTuple, first);
      case PickleUse::kSet:
        return convert(Kind::kSet, first);
      case PickleUse::kDict:
        return make_dict(first);
      case PickleUse::kEncodeText:
        return encode_text(first);
      case PickleUse::kValue:
      case PickleUse::kRefused:
        break;
    }
    return refuse("calls {}, which is none of those that may be", callable->text);
  }
  Result<void> convert(Kind kind, const PickleNode* from) {
    PickleNode* made = push(kind);
    if (from == nullptr) return {};
    if (!is_sequence(*from)) return corrupt("a sequence of what is none");
    for (const PickleNode* item : from->items) RETURN_IF_ERROR(add(made, item));
    return {};
  }
  Result<void> make_dict(const PickleNode* from) {
    PickleNode* dict = push(Kind::kDict);
    if (from == nullptr || from->is(Kind::kGlobal) || from->is(Kind::kNone)) return {};  // defaultdict(list)
    if (from->is(Kind::kDict)) {
      for (const PickleNode* item : from->items) RETURN_IF_ERROR(add(dict, item));
      return {};
    }
    if (!is_sequence(*from)) return corrupt("a dict of what is no list of pairs");
    for (const PickleNode* pair : from->items) {
      if (!is_sequence(*pair) || pair->items.size() != 2) return corrupt("a dict of what are no pairs");
      RETURN_IF_ERROR(add(dict, pair->items[0]));
      RETURN_IF_ERROR(add(dict, pair->items[1]));
    }
    return {};
  }
  // UTF-8 of characters up to U+00FF, back to the bytes that they stand for.
  Result<void> encode_text(const PickleNode* text) {
    if (text == nullptr || !text->is(Kind::kString)) return corrupt("_codecs.encode of what is no text");
    std::string& out = document_.texts_.emplace_back();
    spent_ += text->text.size();
    for (size_t i = 0; i < text->text.size(); ++i) {
      const auto byte = static_cast<uint8_t>(text->text[i]);
      if (byte < 0x80) {
        out += static_cast<char>(byte);
      } else if ((byte & 0xfe) == 0xc2 && i + 1 < text->text.size()) {
        out += static_cast<char>((byte & 0x03) << 6 | (static_cast<uint8_t>(text->text[++i]) & 0x3f));
      } else {
        return corrupt("_codecs.encode of what is no latin1");
      }
    }
    push(Kind::kBytes)->text = out;
    return {};
  }
  // object.__setstate__(state). An OrderedDict's attributes (_metadata) say nothing about weights.
  Result<void> build() {
    ASSIGN_OR_RETURN(PickleNode * state, pop());
    ASSIGN_OR_RETURN(PickleNode * object, top());
    if (object->is(Kind::kDict)) return {};
    if (!object->is(Kind::kObject)) return corrupt("it gives a state to what is no object");
    if (object->has_state) return corrupt("it gives an object a second state");
    object->has_state = true;
    return add(object, state);
  }
  Result<void> stop() {
    ASSIGN_OR_RETURN(document_.root_, pop());
    stopped_ = true;
    return stack_.empty() && marks_.empty() ? Result<void>() : corrupt("values are left over at its end");
  }

  Result<void> step(uint8_t op) {
    switch (op) {
      case kProto: {
        ASSIGN_OR_RETURN(const uint64_t protocol, number(1));
        return protocol >= 2 && protocol <= 5 ? Result<void>() : refuse("protocol {}", protocol);
      }
      case kFrame: {
        ASSIGN_OR_RETURN(const uint64_t count, number(8));
        return count <= bytes_.size() - at_ ? Result<void>() : corrupt("a frame that ends behind the file");
      }
      case kStop:
        return stop();
      case kMark:
        marks_.push_back(stack_.size());
        return {};
      case kPop: {
        if (!marks_.empty() && stack_.size() == marks_.back()) {
          marks_.pop_back();
          return {};
        }
        const auto gone = pop();
        return gone.ok() ? Result<void>() : gone.error();
      }
      case kPopMark: {
        const auto gone = pop_to_mark();
        return gone.ok() ? Result<void>() : gone.error();
      }
      case kDup: {
        ASSIGN_OR_RETURN(PickleNode * value, top());
        ++spent_;
        push(value);
        return {};
      }
      case kReduce:
      case kNewObj:
        return call();
      case kBuild:
        return build();
      default:
        return step_of_values(op);
    }
  }

  Result<void> step_of_values(uint8_t op) {
    switch (op) {
      case kNone:
        push(Kind::kNone);
        return {};
      case kNewTrue:
      case kNewFalse:
        return push_integer(op == kNewTrue ? 1 : 0, Kind::kBool);
      case kBinInt: {
        ASSIGN_OR_RETURN(const uint64_t value, number(4));
        return push_integer(static_cast<int32_t>(value));
      }
      case kBinInt1:
      case kBinInt2: {
        ASSIGN_OR_RETURN(const uint64_t value, number(op == kBinInt1 ? 1 : 2));
        return push_integer(static_cast<int64_t>(value));
      }
      case kLong1:
        return push_long(counted(1));
      case kLong4:
        return push_long(counted(4));
      case kBinFloat: {
        ASSIGN_OR_RETURN(const std::string_view raw, take(8));
        uint64_t bits = 0;
        for (const char c : raw) bits = bits << 8 | static_cast<uint8_t>(c);  // big-endian, alone here
        std::memcpy(&push(Kind::kFloat)->real, &bits, sizeof bits);
        return {};
      }
      case kShortBinUnicode:
      case kShortBinString:
        return push_text(Kind::kString, counted(1));
      case kBinUnicode:
      case kBinString:
        return push_text(Kind::kString, counted(4));
      case kBinUnicode8:
        return push_text(Kind::kString, counted(8));
      case kShortBinBytes:
        return push_text(Kind::kBytes, counted(1));
      case kBinBytes:
        return push_text(Kind::kBytes, counted(4));
      case kBinBytes8:
        return push_text(Kind::kBytes, counted(8));
      default:
        return step_of_containers(op);
    }
  }

  Result<void> step_of_containers(uint8_t op) {
    switch (op) {
      case kEmptyTuple:
        return push_tuple(0);
      case kTuple1:
      case kTuple2:
      case kTuple3:
        return push_tuple(size_t{op} - kTuple1 + 1);
      case kTuple:
        return push_from_mark(Kind::kTuple);
      case kEmptyList:
        push(Kind::kList);
        return {};
      case kList:
        return push_from_mark(Kind::kList);
      case kEmptyDict:
        push(Kind::kDict);
        return {};
      case kDict:
        return push_from_mark(Kind::kDict);
      case kEmptySet:
        push(Kind::kSet);
        return {};
      case kFrozenSet:
        return push_from_mark(Kind::kSet);
      case kAppend: {
        ASSIGN_OR_RETURN(PickleNode * item, pop());
        return append({item});
      }
      case kAppends: {
        ASSIGN_OR_RETURN(const std::vector<PickleNode*> items, pop_to_mark());
        return append(items);
      }
      case kAddItems: {
        ASSIGN_OR_RETURN(const std::vector<PickleNode*> items, pop_to_mark());
        ASSIGN_OR_RETURN(PickleNode * set, top());
        return set->is(Kind::kSet) ? add_all(set, items) : corrupt("it adds to what is no set");
      }
      case kSetItem: {
        ASSIGN_OR_RETURN(PickleNode * value, pop());
        ASSIGN_OR_RETURN(PickleNode * key, pop());
        return set_items({key, value});
      }
      case kSetItems: {
        ASSIGN_OR_RETURN(const std::vector<PickleNode*> items, pop_to_mark());
        return set_items(items);
      }
      default:
        return step_of_names(op);
    }
  }

  Result<void> step_of_names(uint8_t op) {
    switch (op) {
      case kGlobal: {
        ASSIGN_OR_RETURN(const std::string_view module, line());
        ASSIGN_OR_RETURN(const std::string_view name, line());
        return push_global(module, name);
      }
      case kStackGlobal: {
        ASSIGN_OR_RETURN(const PickleNode* name, pop());
        ASSIGN_OR_RETURN(const PickleNode* module, pop());
        if (!name->is(Kind::kString) || !module->is(Kind::kString)) return corrupt("a name that is no text");
        return push_global(module->text, name->text);
      }
      case kBinPersId: {
        ASSIGN_OR_RETURN(const PickleNode* id, pop());
        return add(push(Kind::kPersistent), id);
      }
      case kMemoize:
        return put(memo_.size());
      case kBinPut:
      case kLongBinPut: {
        ASSIGN_OR_RETURN(const uint64_t key, number(op == kBinPut ? 1 : 4));
        return put(key);
      }
      case kBinGet:
      case kLongBinGet: {
        ASSIGN_OR_RETURN(const uint64_t key, number(op == kBinGet ? 1 : 4));
        return get(key);
      }
      default:
        return refuse("opcode 0x{:02x}, which no checkpoint of protocol 2 to 5 has", op);
    }
  }

  PickleDocument& document_;
  std::string_view bytes_;
  const std::string& name_;
  PickleLimits limits_;
  size_t at_ = 0, op_at_ = 0;
  size_t most_;       // of nodes and spent_ together
  size_t spent_ = 0;  // references, entries of the memo, bytes that were encoded
  bool stopped_ = false;
  std::vector<PickleNode*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, PickleNode*> memo_;
};

Result<PickleDocument> PickleDocument::parse(std::string_view bytes, const std::string& name,
                                             const PickleLimits& limits) {
  PickleDocument document;
  RETURN_IF_ERROR(PickleMachine(document, bytes, name, limits).run());
  return document;
}

}  // namespace flywheel::model
