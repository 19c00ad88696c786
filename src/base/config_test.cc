#include "base/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "base/mutation_for_tests.h"
#include "base/philox.h"

namespace flywheel {
namespace {

struct Inner {
  double lr = 3e-4;
  std::vector<int> sizes = {1, 2};
  template <typename V>
  void fields(V& v) {
    v("lr", lr), v("sizes", sizes);
  }
};
struct Outer {
  std::string name = "x";
  Inner optimizer;
  template <typename V>
  void fields(V& v) {
    v("name", name), v("optimizer", optimizer);
  }
};

enum class Size { kSmall, kLarge };
struct Letters {
  unsigned bits = 0;
  Letters operator|(Letters other) const { return {bits | other.bits}; }
  bool operator==(const Letters&) const = default;
};
struct Named {
  Size size = Size::kSmall;
  Letters letters;
  template <typename V>
  void fields(V& v) {
    v("size", size), v("letters", letters);
  }
};

}  // namespace
}  // namespace flywheel

template <>
struct flywheel::ConfigEnum<flywheel::Size> {
  static constexpr std::array<std::pair<const char*, Size>, 2> names{
      {{"small", Size::kSmall}, {"large", Size::kLarge}}};
};
template <>
struct flywheel::ConfigSet<flywheel::Letters> {
  using T = Letters;
  static constexpr std::array<std::pair<const char*, T>, 2> names{{{"none", T{0}}, {"vowels", T{3}}}};
  static constexpr std::array<std::pair<const char*, T>, 3> parts{
      {{"alpha", T{1}}, {"epsilon", T{2}}, {"beta", T{4}}}};
};

namespace flywheel {
namespace {

TEST(Config, ASetIsANameOrAListOfParts) {
  const auto read = [](const std::string& text) {
    return parse_config<Named>("t.yaml", "letters: " + text).letters.bits;
  };
  EXPECT_EQ(read("vowels"), 3u);
  EXPECT_EQ(read("beta"), 4u);
  EXPECT_EQ(read("[beta, alpha, beta]"), 5u);
  EXPECT_EQ(read("[]"), 0u);
  for (unsigned bits = 0; bits < 8; ++bits) {
    const Named named{.letters = {bits}};
    EXPECT_EQ(parse_config<Named>("d", dump_config(named)).letters.bits, bits);
    EXPECT_EQ(parse_set<Letters>("--letters", config_name(named.letters)).bits, bits);
  }
  EXPECT_EQ(config_name(Letters{3}), "vowels");
  EXPECT_EQ(config_name(Letters{6}), "[epsilon,beta]");
  EXPECT_EQ(parse_set<Letters>("--letters", "beta, alpha").bits, 5u);
}

TEST(Config, ANameThatIsNoneOfTheKnownIsRefusedWithTheNearest) {
  const auto message = [](const std::string& text, const std::vector<std::string>& set = {}) -> std::string {
    try {
      parse_config<Named>("t.yaml", text, set);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message("size: lage"),
            "t.yaml:1: size: \"lage\" is not one of small, large; did you mean large?");
  EXPECT_EQ(message("size: blue"), "t.yaml:1: size: \"blue\" is not one of small, large");
  EXPECT_EQ(message("size: small\nletters:\n- alpha\n- betta\n"),
            "t.yaml:4: letters[1]: \"betta\" is not one of alpha, epsilon, beta; did you mean beta?");
  EXPECT_EQ(message("letters: [vowels]"),
            "t.yaml:1: letters[0]: \"vowels\" is not one of alpha, epsilon, beta");
  EXPECT_EQ(
      message("letters: vowel"),
      "t.yaml:1: letters: \"vowel\" is not one of none, vowels, alpha, epsilon, beta; did you mean vowels?");
  EXPECT_EQ(message("letters: {alpha: 1}"),
            "t.yaml:1: letters must be a name or a list of names, not a mapping");
  EXPECT_EQ(
      message("", {"letters=[alpa]"}),
      "--set letters=[alpa]: letters[0]: \"alpa\" is not one of alpha, epsilon, beta; did you mean alpha?");
  EXPECT_EQ(parse_set<Letters>("--letters", "none").bits, 0u);
  try {
    parse_set<Letters>("--letters", "alpha,betta");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "--letters: \"betta\" is not one of alpha, epsilon, beta; did you mean beta?");
  }
  for (const char* text : {"al pha,beta", "[alpha", "alpha,[beta]", "]alpha"})
    EXPECT_THROW(parse_set<Letters>("--letters", text), UserError) << text;
  try {
    parse_set<Letters>("start.json", "[alpha,betta]");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("start.json:1: \"betta\" is not one of "));
  }
}

TEST(Config, ReadsOverridesAndNamesTheNearestKey) {
  const auto config =
      parse_config<Outer>("t.yaml", "name: hello\noptimizer:\n  lr: 1e-3\n", {"optimizer.sizes=[4]"});
  EXPECT_EQ(config.name, "hello");
  EXPECT_EQ(config.optimizer.sizes, std::vector<int>{4});
  try {
    parse_config<Outer>("t.yaml", "name: a\noptimizer:\n  lrr: 1\n");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "t.yaml:3: optimizer.lrr: no such key; did you mean optimizer.lr?");
  }
  EXPECT_EQ(parse_config<Outer>("d", dump_config(config)).optimizer.lr, 1e-3);
}

TEST(Config, WrongTypesNameLineAndKey) {
  const auto message = [](const char* text, const std::vector<std::string>& set = {}) -> std::string {
    try {
      parse_config<Outer>("t.yaml", text, set);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message("name: a\noptimizer:\n  lr: fast\n"),
            "t.yaml:3: optimizer.lr must be a number, not \"fast\"");
  EXPECT_EQ(message("optimizer: 3\n"), "t.yaml:1: optimizer must be a mapping of keys, not \"3\"");
  EXPECT_EQ(message("optimizer: {sizes: [1, x]}"),
            "t.yaml:1: optimizer.sizes[1] must be an integer, not \"x\"");
  EXPECT_EQ(message("name: a\nname: b\n"), "t.yaml:2: name: set twice; leave one of them");
  EXPECT_EQ(message("? [a, b]\n: 1\n"), "t.yaml:1: a key must be a text");
  EXPECT_THAT(message("just words", {"name=a"}), testing::HasSubstr("must be a mapping of keys"));
  EXPECT_THAT(message("a: [1\n"), testing::HasSubstr("not YAML"));
  EXPECT_THAT(message("", {"name"}), testing::HasSubstr("KEY=VALUE"));
  EXPECT_THAT(message("", {"optimizer.api_key=hunter22"}),
              testing::AllOf(testing::StartsWith("--set optimizer.api_key: "),
                             testing::Not(testing::HasSubstr("hunter22"))));
  EXPECT_THAT(message("", {"name.deep.er=1"}), testing::HasSubstr("must be a text"));
  EXPECT_EQ(message("", {"optimizer.lr=1e-2"}), "accepted");
  EXPECT_EQ(message("[1]"), "t.yaml:1: the config must be a mapping of keys, not a list");
  EXPECT_EQ(message("[1]", {"name=a"}), "t.yaml:1: the config must be a mapping of keys, not a list");
}

TEST(Config, AMistakeInAnOverrideIsBlamedOnIt) {
  const auto message = [](const std::string& set, const char* text = "name: a\noptimizer: {lr: 1}\n") {
    try {
      parse_config<Outer>("t.yaml", text, {"name=b", set});
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(message("optimizer.lr=fast"),
            "--set optimizer.lr=fast: optimizer.lr must be a number, not \"fast\"");
  EXPECT_EQ(message("optimizer.lrr=1"),
            "--set optimizer.lrr=1: optimizer.lrr: no such key; did you mean optimizer.lr?");
  EXPECT_EQ(message("optimizr.lr=1"), "--set optimizr.lr=1: optimizr: no such key; did you mean optimizer?");
  EXPECT_EQ(message("optimizer={sizes: [1, x]}"),
            "--set optimizer={sizes: [1, x]}: optimizer.sizes[1] must be an integer, not \"x\"");
  EXPECT_THAT(message("optimizer.lr=[1"), testing::StartsWith("--set optimizer.lr=[1: not YAML"));
  // A mistake in the file stays the file's.
  EXPECT_EQ(message("optimizer.lr=2", "name: a\noptimizer:\n  rate: 1\n").substr(0, 9), "t.yaml:3:");
}

struct Ranges {
  uint64_t seed = 0;
  int32_t small = 0;
  uint8_t tiny = 0;
  template <typename V>
  void fields(V& v) {
    v("seed", seed), v("small", small), v("tiny", tiny);
  }
};

TEST(Config, AnIntegerOutOfRangeIsToldTheRange) {
  const auto message = [](const char* text) {
    try {
      parse_config<Ranges>("t.yaml", text);
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(message("seed: -1"), "t.yaml:1: seed must be an integer of 0 or more, not \"-1\"");
  EXPECT_EQ(message("small: 3e9"),
            "t.yaml:1: small must be an integer from -2147483648 to 2147483647, not \"3e9\"");
  EXPECT_EQ(message("tiny: 256"), "t.yaml:1: tiny must be an integer from 0 to 255, not \"256\"");
  EXPECT_EQ(message("tiny: 255"), "accepted");
}

// Any text: a config or a UserError; a config that was read is read again from its dump.
TEST(Config, SurvivesMutations) {
  const std::string original =
      "%YAML 1.2\n---\nname: |\n  two\n  lines\noptimizer: &o\n  lr: 1e-3  # fast\n  sizes: [1, 0x10, "
      "1_000]\n"
      "? name\n: !!str 'it''s'\n<<: *o\n";
  const std::string alphabet = "{}[]:,&*!|>'\"%@`#?-<\n\t \\~0e.";
  Philox rng(14);
  int read = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string text = round % 2 ? original : "name: \"hello\"\noptimizer: {lr: .5, sizes: [1, 2]}\n";
    mutate(text, rng, {.alphabet = alphabet, .most_edits = 4, .most_inserted = 20, .most_erased = 6});
    std::string dump;
    try {
      dump = dump_config(parse_config<Outer>("t.yaml", text));
    } catch (const UserError& error) {
      EXPECT_THAT(error.what(), testing::StartsWith("t.yaml:")) << text;
      continue;
    }
    ++read;
    EXPECT_EQ(dump_config(parse_config<Outer>("dump.yaml", dump)), dump) << text;
  }
  EXPECT_GT(read, 100);
}

TEST(Config, NearestName) {
  EXPECT_EQ(nearest_name("stag", {"stage", "size"}), "stage");
  EXPECT_EQ(nearest_name("zzzzzz", {"stage", "size"}), "");
  // What is near is so beside the length of the name.
  EXPECT_EQ(nearest_name("foo", {"aio", "fp16", "bf16"}), "");
  EXPECT_EQ(nearest_name("lrr", {"lr", "betas"}), "lr");
  EXPECT_EQ(nearest_name("a", {"b"}), "");
  EXPECT_EQ(nearest_name("", {"b", "ab"}), "");
  EXPECT_EQ(nearest_name("size", {"seed", "side"}), "side");
  EXPECT_EQ(nearest_name("name", {"node"}), "");
  EXPECT_EQ(nearest_name("sotre", {"store"}), "store");  // two letters that changed places
  EXPECT_EQ(nearest_name("train_batch_sise", {"train_batch_size"}), "train_batch_size");
  EXPECT_EQ(nearest_name("train", {"trace", "data"}), "");
  EXPECT_EQ(nearest_name("trian", {"train", "trace"}), "train");
  EXPECT_EQ(nearest_name("selectvie", {"selective", "full"}), "selective");
}

TEST(Config, ANameThatBeginsAnotherOrIsWrittenOtherwiseIsNear) {
  EXPECT_EQ(nearest_name("lrate", {"betas", "lr"}), "lr");
  EXPECT_EQ(nearest_name("grad", {"gradient_clipping", "grad_clip", "lr"}), "grad_clip");  // the least more
  EXPECT_EQ(nearest_name("learning_rate", {"lr", "le"}), "le");
  EXPECT_EQ(nearest_name("l", {"lr"}), "");
  EXPECT_EQ(nearest_name("lr", {"l"}), "");
  EXPECT_EQ(nearest_name("steps", {"step", "steps_per_print"}), "step");  // one change is nearer
  EXPECT_EQ(nearest_name("Every-Steps", {"every_steps", "last_steps"}), "every_steps");
  EXPECT_EQ(nearest_name("min_lr", {"min-lr", "max-lr"}), "min-lr");
  EXPECT_EQ(nearest_name("BF16", {"f32", "bf16"}), "bf16");
  EXPECT_EQ(nearest_name("--temp", {"--top-p", "--temperature"}), "--temperature");
  EXPECT_EQ(nearest_name("--t", {"--temperature"}), "");
  EXPECT_EQ(nearest_name("--", {"--temperature"}), "");
}

TEST(Config, ASecondDocumentIsRefusedWithItsLine) {
  const auto message = [](const std::string& text) -> std::string {
    try {
      (void)config_internal::parse("two.yaml", text);
      return "";
    } catch (const UserError& error) {
      return error.what();
    }
  };
  EXPECT_EQ(message("---\na: 1\n"), "");
  EXPECT_EQ(message(""), "");
  EXPECT_THAT(message("a: 1\n---\na: 2\n"), testing::HasSubstr("two.yaml:2: a second YAML document"));
  EXPECT_THAT(message("a: 1\n---\n"), testing::HasSubstr("two.yaml:2: "));
}

}  // namespace
}  // namespace flywheel
