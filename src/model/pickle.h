// Python's pickles read as data: what a checkpoint of torch or DeepSpeed says, without running any of it.
//
// A pickle is a program for a small stack machine that may import any name and call it. This reader has the
// machine and no way to call: names come from a fixed list (pickle_globals.h), a "call" of one of them
// becomes a node that says so, and any other name refuses the file. Protocols 2 to 5 as in Python's
// Lib/pickletools.py, without extension codes, out-of-band buffers and the opcodes that only protocols 0 and
// 1 write.
//
// Values are nodes of a graph: what was pickled once and referred to twice is one node, so a walk over a
// hostile file can be far longer than the file. Whoever walks counts its steps.
//
// Ownership: a document owns its nodes; strings are views into the bytes, which the caller keeps alive.
// Threads: immutable after parse(), so any.
// Errors: kInvalid (a name or opcode that is refused, a limit), kCorrupt (malformed), with file and byte.
//
//   ASSIGN_OR_RETURN(const PickleDocument pickle, PickleDocument::parse(bytes, "model.pt"));
//   const PickleNode* shapes = pickle.root().get("param_shapes");         // nullptr where there is none
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace flywheel::model {

struct PickleNode {
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kBytes,
    kList,
    kTuple,       // also torch.Size
    kSet,         // also frozenset
    kDict,        // also OrderedDict, defaultdict, Counter
    kGlobal,      // a name of the list: a class, a function, a dtype
    kObject,      // items: what would be called, its arguments (a tuple), its state or nothing
    kPersistent,  // items: what the file's owner must look up (torch: a storage)
  };
  Kind kind = Kind::kNone;
  bool has_state = false;                // kObject: items has three
  uint32_t depth = 0;                    // of the nodes below, when they were put there
  int64_t integer = 0;                   // kBool, kInt
  double real = 0;                       // kFloat
  std::string_view text;                 // kString, kBytes; kGlobal: "torch._utils._rebuild_tensor_v2"
  std::vector<const PickleNode*> items;  // elements; kDict: key, value, key, value, ...

  bool is(Kind k) const { return kind == k; }
  // kObject that was made by this name.
  bool is_call_of(std::string_view global) const { return kind == Kind::kObject && items[0]->text == global; }
  bool is_global(std::string_view name) const { return kind == Kind::kGlobal && text == name; }
  // kObject: its arguments; the i-th, or nullptr.
  const PickleNode* argument(size_t i) const {
    return i < items[1]->items.size() ? items[1]->items[i] : nullptr;
  }
  // kDict: the value of a string key. kObject: that attribute of its state. nullptr where there is none.
  const PickleNode* get(std::string_view key) const;
};

struct PickleLimits {
  size_t max_values =
      100'000'000;           // nodes and references to them; never more than 4 for each byte of the file
  uint32_t max_depth = 200;  // of lists in lists
};

class PickleDocument {
 public:
  // `name` is used in messages.
  static Result<PickleDocument> parse(std::string_view bytes, const std::string& name,
                                      const PickleLimits& limits = {});
  const PickleNode& root() const { return *root_; }
  // Bytes that were read: another pickle may follow.
  size_t size_bytes() const { return size_bytes_; }

 private:
  friend class PickleMachine;
  std::deque<PickleNode> nodes_;  // stay where they are, also when the document moves
  std::deque<std::string> texts_;
  const PickleNode* root_ = nullptr;
  size_t size_bytes_ = 0;
};

}  // namespace flywheel::model
