#include "model/pickle.h"

#include <gtest/gtest.h>

#include "base/mutation_for_tests.h"

namespace flywheel::model {
namespace {

using namespace std::string_literals;
using Kind = PickleNode::Kind;

Result<PickleDocument> parse(const std::string& bytes, const PickleLimits& limits = {}) {
  return PickleDocument::parse(bytes, "evil.pt", limits);
}

std::string name(const std::string& module, const std::string& function) {
  return "c" + module + "\n" + function + "\n";
}
std::string text(const std::string& value) {
  return "\x8c" + std::string(1, static_cast<char>(value.size())) + value;
}

// {"a": (1, -2, 2.5), "b": [True, None, b"xy"], "c": OrderedDict of torch.bfloat16}
const std::string kSound = "\x80\x04}("s + text("a") + "K\x01J\xfe\xff\xff\xffG\x40\x04\0\0\0\0\0\0\x87"s +
                           text("b") + "](\x88NC\x02xye" + text("c") + name("collections", "OrderedDict") +
                           ")R" + "K\x07" + name("torch", "bfloat16") + "su.";

TEST(Pickle, ReadsValues) {
  const auto document = parse(kSound);
  ASSERT_TRUE(document.ok()) << document.error().message;
  const PickleNode& root = document->root();
  EXPECT_EQ(document->size_bytes(), kSound.size());
  const PickleNode* a = root.get("a");
  ASSERT_TRUE(a != nullptr && a->is(Kind::kTuple) && a->items.size() == 3);
  EXPECT_EQ(a->items[0]->integer, 1);
  EXPECT_EQ(a->items[1]->integer, -2);
  EXPECT_EQ(a->items[2]->real, 2.5);
  const PickleNode* b = root.get("b");
  ASSERT_TRUE(b != nullptr && b->is(Kind::kList) && b->items.size() == 3);
  EXPECT_TRUE(b->items[0]->is(Kind::kBool) && b->items[0]->integer == 1);
  EXPECT_TRUE(b->items[1]->is(Kind::kNone));
  EXPECT_EQ(b->items[2]->text, "xy");
  const PickleNode* c = root.get("c");
  ASSERT_TRUE(c != nullptr && c->is(Kind::kDict) && c->items.size() == 2);
  EXPECT_TRUE(c->items[1]->is_global("torch.bfloat16"));
  EXPECT_EQ(root.get("d"), nullptr);
}

TEST(Pickle, CallsAreNodesThatSaySo) {
  // torch.device("cpu"), argparse.Namespace with a state, torch.Size, set, _codecs.encode
  const std::string bytes = "\x80\x02(" + name("torch", "device") + text("cpu") + "\x85R" +
                            name("argparse", "Namespace") + ")\x81}" + text("lr") + "K\x05sb" +
                            name("torch", "Size") + "K\x02K\x03\x86\x85R" + name("__builtin__", "set") +
                            "]K\x09" + "a\x85R" + name("_codecs", "encode") + text("\xc3\xbf!") +
                            text("latin1") + "\x86Rt.";
  const auto document = parse(bytes);
  ASSERT_TRUE(document.ok()) << document.error().message;
  const auto& items = document->root().items;
  ASSERT_EQ(items.size(), 5U);
  EXPECT_TRUE(items[0]->is_call_of("torch.device"));
  EXPECT_EQ(items[0]->argument(0)->text, "cpu");
  EXPECT_EQ(items[0]->argument(1), nullptr);
  EXPECT_EQ(items[1]->get("lr")->integer, 5);
  EXPECT_TRUE(items[2]->is(Kind::kTuple) && items[2]->items[1]->integer == 3);
  EXPECT_TRUE(items[3]->is(Kind::kSet) && items[3]->items[0]->integer == 9);
  EXPECT_TRUE(items[4]->is(Kind::kBytes));
  EXPECT_EQ(items[4]->text, "\xff!");
}

struct Evil {
  const char* what;
  std::string bytes;
  std::string expected;  // in the message
};

std::vector<Evil> evils() {
  const std::string two = "\x80\x02", four = "\x80\x04";
  std::string deep = two;
  deep.append(5000, ']').append(4999, 'a').append(".");
  std::string tuples = two + "N";
  tuples.append(5000, '\x85').append(".");
  // A list of a thousand, copied again and again through torch.Size.
  std::string copies = two + "(";
  for (int i = 0; i < 1000; ++i) copies += "N";
  copies +=
      "tq\x01"
      "0" +
      name("torch", "Size") +
      "q\x02"
      "0(";
  for (int i = 0; i < 1000; ++i) copies += "h\x02h\x01\x85R";
  copies += "t.";
  const std::string system = name("os", "system") + text("touch pwned") + "\x85R.";
  return {
      {"os.system by REDUCE", two + system, "os.system"},
      {"os.system by STACK_GLOBAL", four + text("os") + text("system") + "\x93" + text("id") + "\x85R.",
       "os.system"},
      {"posix.system", two + name("posix", "system") + text("id") + "\x85R.", "posix.system"},
      {"a name alone, never called", two + name("os", "system") + ".", "os.system"},
      {"eval", two + name("__builtin__", "eval") + text("1+1") + "\x85R.", "__builtin__.eval"},
      {"setattr", two + name("builtins", "setattr") + ".", "builtins.setattr"},
      {"a name with dots", four + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + "\x93.",
       "__globals__"},
      {"runpy", two + name("runpy", "_run_code") + ".", "runpy._run_code"},
      {"torch.hub.load", two + name("torch.hub", "load") + ".", "torch.hub.load"},
      {"a pickle in a pickle", two + name("torch.storage", "_load_from_bytes") + ".", "_load_from_bytes"},
      {"a whole module", two + name("torch.nn.modules.linear", "Linear") + ")\x81.", "Linear"},
      {"a dtype that is called", two + name("torch", "float32") + ")R.", "torch.float32"},
      {"a value that is called", two + "K\x01)R.", "calls what is no name"},
      {"a string that is called", two + text("os.system") + ")R.", "calls what is no name"},
      {"NEWOBJ of a function's result", two + name("torch", "device") + text("x") + "\x85R)\x81.",
       "calls what is no name"},
      {"INST", two + "(" + text("id") + "ios\nsystem\n.", "opcode 0x69"},
      {"OBJ", two + "(" + name("torch", "device") + text("id") + "o.", "opcode 0x6f"},
      {"NEWOBJ_EX", four + name("torch", "device") + ")}\x92.", "opcode 0x92"},
      {"EXT1", two + "\x82\x01.", "opcode 0x82"},
      {"PERSID", two + "Pos\n.", "opcode 0x50"},
      {"NEXT_BUFFER", "\x80\x05\x97.", "opcode 0x97"},
      {"protocol 0", "cos\nsystem\n(S'id'\ntR.", "protocol 2 to 5"},
      {"protocol 9", "\x80\x09N.", "protocol 9"},
      {"lists in lists", deep, "nested more than"},
      {"tuples in tuples", tuples, "nested more than"},
      {"copies of copies", copies, "unfolds to more than"},
      {"a text longer than the file", two + "X\xff\xff\xff\x0f" + "abc.", "cut short"},
      {"a text of 2^63", four + "\x8d\xff\xff\xff\xff\xff\xff\xff\x7f" + "abc.", "a text of"},
      {"a frame longer than the file", four + "\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "frame"},
      {"no STOP", two + "N", "without its STOP"},
      {"an empty stack", two + ".", "not there"},
      {"values left over", two + "NN.", "left over"},
      {"a mark left over", two + "(N.", "left over"},
      {"a mark that is not there", two + "Nt.", "mark"},
      {"below the mark", two + "N(\x85.", "not there"},
      {"a memo that was not kept", two + "h\x07.", "never kept"},
      {"half a pair", two + "}(Nu.", "key without a value"},
      {"items of a list", two + "]NNs.", "no dict"},
      {"append to a tuple", two + ")Na.", "no list"},
      {"a state for a number", two + "K\x01}b.", "no object"},
      {"a second state", two + name("torch", "device") + ")R}b}b.", "second state"},
      {"arguments that are no tuple", two + name("torch", "device") + "]R.", "no tuple"},
      {"empty", "", "not a pickle"},
  };
}

TEST(Pickle, EvilIsRefusedByName) {
  for (const Evil& evil : evils()) {
    const auto document = parse(evil.bytes);
    ASSERT_FALSE(document.ok()) << evil.what;
    EXPECT_NE(document.error().message.find(evil.expected), std::string::npos)
        << evil.what << ": " << document.error().message;
    EXPECT_NE(document.error().message.find("evil.pt"), std::string::npos) << document.error().message;
  }
}

TEST(Pickle, MemoAtAnyNumberTakesNoRoomForTheOthers) {
  const auto document = parse("\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff\x86.");
  ASSERT_TRUE(document.ok()) << document.error().message;
  EXPECT_EQ(document->root().items[0], document->root().items[1]);
}

// Ten lists of ten lists of ...: a short file, whose graph has few nodes however many paths.
TEST(Pickle, SharedValuesAreOneNode) {
  std::string bytes = "\x80\x02]q";
  bytes += '\0';
  for (char level = 1; level < 60; ++level) {
    bytes += "](";
    for (int i = 0; i < 10; ++i) bytes += std::string("h") + static_cast<char>(level - 1);
    bytes += std::string("eq") + level;
  }
  // All but the last lie below it on the stack: a tuple of them ends the file.
  bytes.insert(2, "(");
  bytes += "t.";
  const auto document = parse(bytes);
  ASSERT_TRUE(document.ok()) << document.error().message;
  EXPECT_EQ(document->root().items.size(), 60U);
  EXPECT_EQ(document->root().items[59]->items[9], document->root().items[58]);
}

TEST(Pickle, AListThatHoldsItselfIsNoTrouble) {
  const auto document = parse(
      "\x80\x02]q\x01h\x01"
      "a.");
  ASSERT_TRUE(document.ok()) << document.error().message;
  EXPECT_EQ(document->root().items[0], &document->root());
}

TEST(Pickle, LimitOfValues) {
  std::string bytes = "\x80\x02(";
  bytes.append(10'000, 'N').append("t.");
  EXPECT_TRUE(parse(bytes).ok());
  EXPECT_FALSE(parse(bytes, {.max_values = 5000}).ok());
}

TEST(Pickle, EveryCutIsAnError) {
  for (size_t n = 0; n < kSound.size(); ++n) EXPECT_FALSE(parse(kSound.substr(0, n)).ok()) << n;
}

TEST(Pickle, MutatedFilesEndWithAValueOrAnError) {
  Philox rng(20261121);
  const std::vector<Evil> all = evils();
  int sound = 0;
  for (int i = 0; i < 30'000; ++i) {
    std::string bytes = i % 2 == 0 ? kSound : all[rng.below(all.size())].bytes;
    if (bytes.size() > 4000) bytes.resize(4000);
    mutate(bytes, rng,
           {.alphabet = "().}]eusatRbcqhNK\x81\x85\x8c\x93\x94",
            .most_edits = 4,
            .most_inserted = 8,
            .most_erased = 4});
    sound += parse(bytes).ok() ? 1 : 0;
  }
  EXPECT_GT(sound, 100);
}

}  // namespace
}  // namespace flywheel::model
