#include "model/torch_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/mutation_for_tests.h"
#include "model/gathered_weights.h"
#include "model/torch_weights.h"
#include "model/zip_writer_for_tests.h"

namespace flywheel::model {
namespace {

using P = TorchPickleForTests;

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Six values, and views of them: whole, transposed, a row, one that repeats.
std::string sound(bool zip64 = false) {
  ZipWriterForTests zip{.zip64 = zip64};
  const std::string pickle = P::dict({{"whole", P::tensor("0", 6, 0, {2, 3}, {3, 1})},
                                      {"turned", P::tensor("0", 6, 0, {3, 2}, {1, 3})},
                                      {"row", P::tensor("0", 6, 3, {3}, {1})},
                                      {"repeated", P::tensor("0", 6, 1, {4, 2}, {0, 1})},
                                      {"scalar", P::tensor("0", 6, 5, {}, {})},
                                      {"empty", P::tensor("0", 6, 0, {0, 7}, {7, 1})}});
  return zip.add("m/data.pkl", pickle)
      .add("m/byteorder", "little")
      .add("m/data/0", floats({0, 1, 2, 3, 4, 5}))
      .add("m/version", "3\n")
      .finish();
}

std::vector<float> values(const TorchFile& file, const std::string& name) {
  const TorchTensor tensor = file.tensor(*file.root().get(name), name).value();
  const std::vector<uint8_t> bytes = tensor.to_contiguous();
  std::vector<float> out(bytes.size() / sizeof(float));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

TEST(TorchFile, ViewsOfOneStorage) {
  for (const bool zip64 : {false, true}) {
    const std::string bytes = sound(zip64);
    const auto file = TorchFile::parse(bytes, "m.pt");
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_TRUE(file->verify().ok());
    EXPECT_EQ(values(*file, "whole"), (std::vector<float>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(values(*file, "turned"), (std::vector<float>{0, 3, 1, 4, 2, 5}));
    EXPECT_EQ(values(*file, "row"), (std::vector<float>{3, 4, 5}));
    EXPECT_EQ(values(*file, "repeated"), (std::vector<float>{1, 2, 1, 2, 1, 2, 1, 2}));
    EXPECT_EQ(values(*file, "scalar"), (std::vector<float>{5}));
    EXPECT_TRUE(values(*file, "empty").empty());
    EXPECT_TRUE(file->tensor(*file->root().get("row"), "row")->is_contiguous());
    EXPECT_FALSE(file->tensor(*file->root().get("turned"), "turned")->is_contiguous());
    EXPECT_EQ(file->tensors_below(file->root())->size(), 6U);
  }
}

void expect_refused(const std::string& bytes, const std::string& expected) {
  const auto file = TorchFile::parse(bytes, "m.pt");
  if (!file.ok()) {
    EXPECT_NE(file.error().message.find(expected), std::string::npos) << file.error().message;
    return;
  }
  const auto tensor = file->tensor(*file->root().get("t"), "t");
  ASSERT_FALSE(tensor.ok()) << expected;
  EXPECT_NE(tensor.error().message.find(expected), std::string::npos) << tensor.error().message;
  EXPECT_NE(tensor.error().message.find("m.pt"), std::string::npos) << tensor.error().message;
}

std::string with_tensor(const std::string& tensor, const std::string& storage = floats({0, 1, 2, 3, 4, 5})) {
  ZipWriterForTests zip;
  return zip.add("m/data.pkl", P::dict({{"t", tensor}})).add("m/data/0", storage).finish();
}

TEST(TorchFile, TensorsThatCannotBe) {
  expect_refused(with_tensor(P::tensor("0", 6, 0, {2, 4}, {4, 1})), "ends at element 7 of a storage of 6");
  expect_refused(with_tensor(P::tensor("0", 6, 6, {1}, {1})), "ends at element 6");
  expect_refused(with_tensor(P::tensor("0", 6, -1, {1}, {1})), "not described");
  expect_refused(with_tensor(P::tensor("0", 6, 0, {-1}, {1})), "not described");
  expect_refused(with_tensor(P::tensor("0", 6, 0, {2, 3}, {1})), "not described");
  expect_refused(with_tensor(P::tensor("0", 600, 0, {2, 3}, {3, 1})), "has 24 bytes and should have 2400");
  expect_refused(with_tensor(P::tensor("7", 6, 0, {2, 3}, {3, 1})), "m/data/7 is not in the file");
  expect_refused(with_tensor(P::tensor("0", 6, 0, {1 << 20, 1 << 20}, {0, 0})), "repeats a storage of 6");
  expect_refused(with_tensor(P::tensor("0", 6, 0, {1LL << 40, 1LL << 40}, {0, 0})), "too large");
  expect_refused(with_tensor(P::tensor("0", 6, 0, {1LL << 40, 2}, {1LL << 40, 1LL << 47})),
                 "ends at element");
  expect_refused(with_tensor("K\x07"), "not described");
  expect_refused(with_tensor(P::name("os", "system") + P::text("id") + "\x85R"), "os.system");
}

TEST(TorchFile, FilesThatAreNot) {
  ZipWriterForTests big, packed{.method = 8}, secret{.flags = 1}, moved{.shift_offset = 3}, twice, script,
      empty;
  const std::string pickle = P::dict({{"t", P::tensor("0", 1, 0, {1}, {1})}});
  expect_refused(big.add("m/data.pkl", pickle).add("m/byteorder", "big").finish(), "little-endian");
  expect_refused(packed.add("m/data.pkl", pickle).finish(), "compressed");
  expect_refused(secret.add("m/data.pkl", pickle).finish(), "encrypted");
  expect_refused(moved.add("m/data.pkl", pickle).finish(), "where no entry does");
  expect_refused(twice.add("m/data.pkl", pickle).add("m/data.pkl", pickle).finish(), "is in it twice");
  expect_refused(script.add("m/data.pkl", pickle).add("m/constants.pkl", "").finish(), "TorchScript");
  expect_refused(empty.add("m/other", "").finish(), "without data.pkl");
  expect_refused(
      "\x80\x02"
      "N.",
      "torch 1.6");
  // Two names for the same bytes.
  ZipWriterForTests shared;
  shared.add("m/data.pkl", pickle);
  const std::string entry = shared.directory;
  shared.directory += entry;
  ++shared.entries;
  expect_refused(shared.finish(), "overlap");
  const std::string bytes = sound();
  for (size_t n = 0; n < bytes.size(); n += 7)
    EXPECT_FALSE(TorchFile::parse(std::string_view(bytes).substr(0, n), "m.pt").ok()) << n;
}

TEST(TorchFile, ADamagedStorageIsFoundByVerify) {
  std::string bytes = sound();
  const float three = 3;
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(&three), 4));
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  const auto file = TorchFile::parse(bytes, "m.pt");
  ASSERT_TRUE(file.ok());
  EXPECT_NE(file->verify().error().message.find("m/data/0"), std::string::npos);
}

// {"a": d1, "b": d1, ...} with d1 = {"a": d2, ...}: paths without end in a file of a kilobyte.
TEST(TorchFile, DictsThatHoldOneAnotherEndInAnError) {
  std::string pickle = "\x80\x02(}" + P::text("t") + P::tensor("0", 1, 0, {1}, {1}) + "sq";
  pickle += '\0';
  for (char level = 1; level < 40; ++level) {
    pickle += "}(";
    for (const char* key : {"a", "b", "c"}) pickle += P::text(key) + "h" + static_cast<char>(level - 1);
    pickle += std::string("uq") + level;
  }
  ZipWriterForTests zip;
  const std::string bytes = zip.add("m/data.pkl", pickle + "t.").add("m/data/0", floats({1})).finish();
  const auto file = TorchFile::parse(bytes, "m.pt");
  ASSERT_TRUE(file.ok()) << file.error().message;
  const auto found = file->tensors_below(*file->root().items.back());
  ASSERT_FALSE(found.ok());
  EXPECT_NE(found.error().message.find("without end"), std::string::npos) << found.error().message;
}

TEST(TorchFile, MutatedFilesStayInside) {
  Philox rng(20261122);
  const std::string original = sound();
  int usable = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = original;
    mutate(bytes, rng, {.alphabet = std::string_view("PK\1\2\3\4\5\6\0.}u(tRQ\x8a", 17), .most_edits = 3});
    const auto file = TorchFile::parse(bytes, "m.pt");
    if (!file.ok()) continue;
    const auto found = file->tensors_below(file->root());
    if (!found.ok()) continue;
    for (const auto& [name, node] : *found) {
      const auto tensor = file->tensor(*node, name);
      if (!tensor.ok()) continue;
      usable += tensor->to_contiguous().empty() ? 0 : 1;
    }
  }
  EXPECT_GT(usable, 1000);
}

TEST(TorchWeights, OneFileBesideItsConfig) {
  TempFolder folder;
  ZipWriterForTests zip;
  const std::string pickle = P::dict({{"model.embed_tokens.weight", P::tensor("0", 6, 0, {3, 2}, {1, 3})},
                                      {"model.steps", P::tensor("1", 1, 0, {1}, {1}, "LongStorage")}});
  write_file(folder / "pytorch_model.bin", zip.add("m/data.pkl", pickle)
                                               .add("m/data/0", floats({0, 1, 2, 3, 4, 5}))
                                               .add("m/data/1", "12345678")
                                               .finish())
      .value();
  const auto source = open_weights(folder.path());
  ASSERT_TRUE(source.ok()) << source.error().message;
  ASSERT_EQ((*source)->tensors().size(), 1U);
  const Tensor tensor = (*source)->tensor("model.embed_tokens.weight").value();
  EXPECT_EQ(to_f32(tensor), (std::vector<float>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ((*source)->tensor("model.embed_tokens.weight")->bytes.data(), tensor.bytes.data());  // kept
  EXPECT_NE((*source)->tensor("model.steps").error().message.find("torch.int64"), std::string::npos);
  EXPECT_EQ((*source)->tensor("absent").error().code, ErrorCode::kNotFound);
  EXPECT_NE((*source)->config().error().message.find("--config"), std::string::npos);
  write_file(folder / "config.json", R"({"model_type": "llama"})").value();
  EXPECT_EQ((*source)->config().value()["model_type"], "llama");
}

TEST(TorchWeights, ShardsAreThoseOfTheirIndex) {
  TempFolder folder;
  ZipWriterForTests one, two;
  write_file(folder / "a.bin", one.add("m/data.pkl", P::dict({{"x", P::tensor("0", 1, 0, {1}, {1})}}))
                                   .add("m/data/0", floats({1}))
                                   .finish())
      .value();
  write_file(folder / "b.bin", two.add("m/data.pkl", P::dict({{"y", P::tensor("0", 1, 0, {1}, {1})}}))
                                   .add("m/data/0", floats({2}))
                                   .finish())
      .value();
  const std::string index = folder / kTorchIndexName;
  write_file(index, R"({"weight_map": {"x": "a.bin", "y": "b.bin"}})").value();
  EXPECT_EQ(to_f32(open_weights(folder.path()).value()->tensor("y").value()), (std::vector<float>{2}));
  write_file(index, R"({"weight_map": {"x": "a.bin", "z": "b.bin"}})").value();
  EXPECT_NE(open_weights(folder.path()).error().message.find("tensor z should be here"), std::string::npos);
  write_file(index, R"({"weight_map": {"x": "../a.bin"}})").value();
  EXPECT_EQ(open_weights(folder.path()).error().code, ErrorCode::kDenied);
}

TEST(GatheredWeights, NamesBecomeThoseOfTheModel) {
  const auto names = [](const std::vector<std::string>& given) {
    std::vector<std::string> out;
    const auto canonical = canonical_names(given).value();
    for (const auto& [from, to] : canonical) out.push_back(from + " > " + to);
    return out;
  };
  using List = std::vector<std::string>;
  EXPECT_EQ(names({"module.lm_head.weight", "module.model.embed_tokens.weight", "other"}),
            (List{"module.lm_head.weight > lm_head.weight",
                  "module.model.embed_tokens.weight > model.embed_tokens.weight"}));
  EXPECT_EQ(names({"embed_tokens.weight", "norm.weight"}),
            (List{"embed_tokens.weight > model.embed_tokens.weight", "norm.weight > model.norm.weight"}));
  EXPECT_EQ(names({"model.model._orig_mod.embed_tokens.weight", "model.lm_head.weight",
                   "optimizer.state.model.embed_tokens.weight.exp_avg"}),
            (List{"model.lm_head.weight > lm_head.weight",
                  "model.model._orig_mod.embed_tokens.weight > model.embed_tokens.weight"}));
  EXPECT_EQ(names({"model.embed_tokens.weight", "optim.state.model.embed_tokens.weight.exp_avg"}),
            (List{"model.embed_tokens.weight > model.embed_tokens.weight"}));
  EXPECT_EQ(names({"conv1.weight", "fc.bias"}), (List{"conv1.weight > conv1.weight", "fc.bias > fc.bias"}));
  EXPECT_NE(canonical_names({"ema.model.embed_tokens.weight", "model.embed_tokens.weight"})
                .error()
                .message.find("two models"),
            std::string::npos);
}

}  // namespace
}  // namespace flywheel::model
