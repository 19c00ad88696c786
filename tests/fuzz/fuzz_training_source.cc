// Trainings of others: whatever the bytes of one rank's optimizer file of DeepSpeed, or of DCP's .metadata,
// reading ends with tensors or an error. The first byte says which of the two.
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "fuzzer.h"
#include "model/dcp_writer_for_tests.h"
#include "model/training_source.h"
#include "model/zip_writer_for_tests.h"

using flywheel::model::DcpWriterForTests;
using flywheel::model::ZipWriterForTests;
using P = flywheel::model::TorchPickleForTests;

namespace {

constexpr char kDeepSpeed = 'd', kDcp = 'c';

// A dict without the pickle's frame.
std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items) out += P::text(key) + value;
  return out + "u";
}
std::string saved(const std::string& value, const std::string& storage) {
  return ZipWriterForTests().add("a/data.pkl", "\x80\x04" + value + ".").add("a/data/0", storage).finish();
}

DcpWriterForTests dcp() {
  DcpWriterForTests made;
  made.add("model.model.norm.weight", {2}, {1, 2});
  made.add("optim.state.model.norm.weight.step", {}, {3});
  made.add("optim.state.model.norm.weight.exp_avg", {2}, {1, 2});
  made.add("optim.state.model.norm.weight.exp_avg_sq", {2}, {1, 2});
  made.add_number("lr_scheduler.last_epoch", 3);
  return made;
}

std::string optimizer_states() {
  const std::string flat = P::tensor("0", 2, 0, {2}, {1});
  const std::string state = dict({{"step", P::integer(3)}, {"exp_avg", flat}, {"exp_avg_sq", flat}});
  const std::string base =
      dict({{"state", "}(" + P::integer(0) + state + "u"},
            {"param_groups", "](" + dict({{"params", "](" + P::integer(0) + "e"}}) + "e"}});
  return saved(dict({{"optimizer_state_dict", dict({{"zero_stage", P::integer(2)},
                                                    {"partition_count", P::integer(1)},
                                                    {"single_partition_of_fp32_groups", "](" + flat + "e"},
                                                    {"base_optimizer_state", base}})}}),
               std::string(8, 'x'));
}

// Made once: the files that are not fuzzed.
struct Folders {
  std::string root = std::filesystem::temp_directory_path() / ("fuzz_training_" + std::to_string(getpid()));
  Folders() {
    std::filesystem::create_directories(root + "/deepspeed");
    std::filesystem::create_directories(root + "/dcp");
    std::ofstream(root + "/deepspeed/mp_rank_00_model_states.pt", std::ios::binary)
        << saved(dict({{"module", "}"},
                       {"buffer_names", "]"},
                       {"param_shapes", "](" + dict({{"model.norm.weight", P::tuple({2})}}) + "e"},
                       {"global_steps", P::integer(3)}}),
                 "");
    std::ofstream(root + "/dcp/__0_0.distcp", std::ios::binary) << dcp().pieces;
  }
  ~Folders() { std::filesystem::remove_all(root); }
};

std::vector<std::string> seeds() {
  return {kDeepSpeed + optimizer_states(), kDcp + dcp().metadata()};
}

void run(std::string_view input) {
  static const Folders folders;
  if (input.empty()) return;
  const bool is_dcp = input[0] == kDcp;
  const std::string folder = folders.root + (is_dcp ? "/dcp" : "/deepspeed");
  const std::string path = folder + (is_dcp ? "/.metadata" : "/zero_pp_rank_0_mp_rank_00_optim_states.pt");
  std::ofstream(path, std::ios::binary) << input.substr(1);
  const auto training =
      is_dcp ? flywheel::model::open_dcp_training(folder) : flywheel::model::open_deepspeed_training(folder);
  if (!training.ok()) return;
  for (const auto* source :
       {training->weights.get(), training->first_moments.get(), training->second_moments.get()}) {
    for (const auto& info : source->tensors()) {
      if (info.elements() > 1 << 16) continue;
      std::vector<uint8_t> bytes(
          static_cast<size_t>(info.elements() * flywheel::kernels::block_bytes(info.dtype)));
      (void)source->copy(info.name, bytes).ok();
    }
  }
}

const FuzzerRegistration registration("training_source", seeds, run);

}  // namespace
