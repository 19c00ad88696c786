#include "model/pickle_globals.h"

#include <map>

namespace flywheel::model {
namespace {

using Use = PickleUse;

// All that torch.save, torch.distributed.checkpoint and DeepSpeed put into checkpoints of weights. Nothing
// here is ever called; a name that is missing is refused, so that what was not looked at is not guessed.
const std::map<std::string_view, Use>& globals() {
  static const std::map<std::string_view, Use> names = {
      // Python
      {"collections.OrderedDict", Use::kDict},
      {"collections.defaultdict", Use::kDict},
      {"collections.Counter", Use::kDict},
      {"builtins.dict", Use::kDict},
      {"builtins.list", Use::kValue},  // of a defaultdict
      {"builtins.int", Use::kValue},
      {"builtins.float", Use::kValue},
      {"builtins.set", Use::kSet},
      {"builtins.frozenset", Use::kSet},
      {"builtins.getattr", Use::kCall},  // of an enumeration's member, by Python 3.11.0 to 3.11.3
      {"_codecs.encode", Use::kEncodeText},
      {"argparse.Namespace", Use::kCall},
      {"pathlib.Path", Use::kCall},
      {"pathlib.PosixPath", Use::kCall},
      {"pathlib._local.PosixPath", Use::kCall},
      // torch: tensors
      {"torch._utils._rebuild_tensor", Use::kCall},
      {"torch._utils._rebuild_tensor_v2", Use::kCall},
      {"torch._utils._rebuild_tensor_v3", Use::kCall},
      {"torch._utils._rebuild_parameter", Use::kCall},
      {"torch._utils._rebuild_parameter_with_state", Use::kCall},
      {"torch._tensor._rebuild_from_type_v2", Use::kCall},
      {"torch.Tensor", Use::kValue},
      {"torch.nn.parameter.Parameter", Use::kValue},
      {"torch.nn.parameter.Buffer", Use::kValue},
      {"torch.Size", Use::kTuple},
      {"torch.device", Use::kCall},
      {"torch.serialization._get_layout", Use::kCall},
      // torch: what a storage holds
      {"torch.FloatStorage", Use::kValue},
      {"torch.HalfStorage", Use::kValue},
      {"torch.BFloat16Storage", Use::kValue},
      {"torch.DoubleStorage", Use::kValue},
      {"torch.LongStorage", Use::kValue},
      {"torch.IntStorage", Use::kValue},
      {"torch.ShortStorage", Use::kValue},
      {"torch.CharStorage", Use::kValue},
      {"torch.ByteStorage", Use::kValue},
      {"torch.BoolStorage", Use::kValue},
      {"torch.ComplexFloatStorage", Use::kValue},
      {"torch.ComplexDoubleStorage", Use::kValue},
      {"torch.storage.UntypedStorage", Use::kValue},
      // torch: dtypes
      {"torch.float32", Use::kValue},
      {"torch.float16", Use::kValue},
      {"torch.bfloat16", Use::kValue},
      {"torch.float64", Use::kValue},
      {"torch.int64", Use::kValue},
      {"torch.int32", Use::kValue},
      {"torch.int16", Use::kValue},
      {"torch.int8", Use::kValue},
      {"torch.uint8", Use::kValue},
      {"torch.uint16", Use::kValue},
      {"torch.uint32", Use::kValue},
      {"torch.uint64", Use::kValue},
      {"torch.bool", Use::kValue},
      {"torch.complex64", Use::kValue},
      {"torch.complex128", Use::kValue},
      {"torch.float8_e4m3fn", Use::kValue},
      {"torch.float8_e5m2", Use::kValue},
      {"torch.float8_e4m3fnuz", Use::kValue},
      {"torch.float8_e5m2fnuz", Use::kValue},
      // torch.distributed.checkpoint: .metadata
      {"torch.distributed.checkpoint.metadata.Metadata", Use::kCall},
      {"torch.distributed.checkpoint.metadata.MetadataIndex", Use::kCall},
      {"torch.distributed.checkpoint.metadata.TensorStorageMetadata", Use::kCall},
      {"torch.distributed.checkpoint.metadata.BytesStorageMetadata", Use::kCall},
      {"torch.distributed.checkpoint.metadata.ChunkStorageMetadata", Use::kCall},
      {"torch.distributed.checkpoint.metadata.TensorProperties", Use::kCall},
      {"torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING", Use::kCall},
      {"torch.distributed.checkpoint.metadata.StorageMeta", Use::kCall},
      {"torch.distributed.checkpoint.filesystem._StorageInfo", Use::kCall},
      {"torch.distributed.checkpoint.filesystem._StoragePrefix", Use::kCall},
      {"torch.distributed._shard.sharded_tensor.metadata.TensorProperties", Use::kCall},
      {"torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING", Use::kCall},
      // DeepSpeed
      {"deepspeed.runtime.zero.config.ZeroStageEnum", Use::kCall},
      {"deepspeed.runtime.fp16.loss_scaler.LossScaler", Use::kCall},
      {"deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler", Use::kCall},
      {"deepspeed.utils.tensor_fragment.fragment_address", Use::kCall},
  };
  return names;
}

}  // namespace

PickleGlobal find_pickle_global(std::string_view module, std::string_view name) {
  std::string full(module == "__builtin__" ? "builtins" : module);
  full += '.';
  full += name;
  const auto found = globals().find(full);
  return found == globals().end() ? PickleGlobal() : PickleGlobal{found->second, found->first};
}

}  // namespace flywheel::model
