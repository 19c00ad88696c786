// The names that a checkpoint's pickle may hold. Not for other rooms: see pickle.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flywheel::model {

// What may be said with a name.
enum class PickleUse : uint8_t {
  kRefused,     // not on the list
  kValue,       // it stands for itself: torch.bfloat16
  kCall,        // it is called or instantiated; the result is a node that says so
  kTuple,       // called, it is its argument as a tuple
  kSet,         // called, it is its argument as a set
  kDict,        // called, it is a dict: of pairs, of another dict, or empty
  kEncodeText,  // _codecs.encode(text, "latin1"): how protocol 2 writes bytes
};

struct PickleGlobal {
  PickleUse use = PickleUse::kRefused;
  std::string_view name;  // lives forever
};

// `module` and `name` as the pickle has them; __builtin__ is Python 2's word for builtins.
PickleGlobal find_pickle_global(std::string_view module, std::string_view name);

}  // namespace flywheel::model
