// Files of torch.save and pickles alone: whatever the bytes, reading ends with a value or an error, and every
// tensor lies inside the file.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "fuzzer.h"
#include "model/torch_file.h"
#include "model/zip_writer_for_tests.h"

using flywheel::model::PickleDocument;
using flywheel::model::TorchFile;
using P = flywheel::model::TorchPickleForTests;

namespace {

std::vector<std::string> seeds() {
  std::vector<std::string> out;
  const std::string pickle = P::dict({{"whole", P::tensor("0", 4, 0, {2, 2}, {2, 1})},
                                      {"turned", P::tensor("0", 4, 0, {2, 2}, {1, 2}, "HalfStorage")}});
  for (const bool zip64 : {false, true}) {
    flywheel::model::ZipWriterForTests zip;
    zip.zip64 = zip64;
    zip.add("m/data.pkl", pickle).add("m/byteorder", "little").add("m/data/0", std::string(16, 'x'));
    out.push_back(zip.finish());
  }
  out.push_back(pickle);
  out.push_back("\x80\x04]\x94(K\x01K\x02" + P::name("torch", "Size") + "K\x02\x85\x85R}" + P::text("a") +
                "h" + std::string(1, '\0') + "s" + P::name("argparse", "Namespace") + ")\x81}b" +
                P::name("_codecs", "encode") + P::text("\xc3\xbf") + P::text("latin1") + "\x86R\x8f(Ne.");
  return out;
}

void run(std::string_view input) {
  (void)PickleDocument::parse(input, "fuzz").ok();
  const auto file = TorchFile::parse(input, "fuzz");
  if (!file.ok()) return;
  (void)file->verify().ok();
  const auto found = file->tensors_below(file->root());
  if (!found.ok()) return;
  const auto* end = reinterpret_cast<const uint8_t*>(input.data() + input.size());
  for (const auto& [name, node] : *found) {
    const auto tensor = file->tensor(*node, name);
    if (!tensor.ok()) continue;
    CHECK(tensor->storage.empty() || tensor->storage.data() + tensor->storage.size() <= end,
          "{} ends behind the file", name);
    if (tensor->elements() < 1 << 16) (void)tensor->to_contiguous();
  }
}

const FuzzerRegistration registration("torch", seeds, run);

}  // namespace
