#include "data/refusals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/config.h"
#include "data/document.h"
#include "data/prepare.h"

namespace flywheel::data {
namespace {

std::string line(const std::string& rule, double value, double threshold) {
  return to_json_line(Dropped{"1", "a.txt", "", "clean", rule, value, threshold, 10, ""}) + "\n";
}

TEST(Refusals, AreCountedByRuleWithWhatWasMeasured) {
  const std::vector<Refusals> rules =
      refusals(line("gopher_quality.min_words", 7, 50) + line("gopher_quality.max_words", 202651, 100000) +
               "no json\n" + line("gopher_quality.min_words", 3, 50));
  ASSERT_EQ(rules.size(), 2u);
  EXPECT_EQ(rules[0].rule, "gopher_quality.min_words");
  EXPECT_EQ(rules[0].documents, 2);
  EXPECT_EQ(rules[0].least, 3);
  EXPECT_EQ(rules[0].most, 7);
  EXPECT_EQ(rules[1].documents, 1);
  EXPECT_TRUE(refusals("").empty());
  EXPECT_EQ(
      describe_refusals(rules, 3),
      "gopher_quality.min_words dropped 2 of 3 (3 to 7 where 50 is the least), `--set "
      "quality.gopher_quality.min_words=3` lets them past; gopher_quality.max_words dropped 1 of 3 "
      "(202651 where 100000 is the most), `--set quality.gopher_quality.max_words=202651` lets it past");
  EXPECT_THAT(describe_refusals(refusals(line("gopher_quality.max_words", 1234567, 100000)), 1),
              testing::HasSubstr(
                  "(1234567 where 100000 is the most), `--set quality.gopher_quality.max_words=1234567`"));
  EXPECT_THAT(describe_refusals(refusals(line("gopher_repetition.max_duplicate_lines", 0.45678, 0.3)), 1),
              testing::HasSubstr("(0.4568 where 0.3 is the most), `--set "
                                 "quality.gopher_repetition.max_duplicate_lines=0.457` lets it past"));
  EXPECT_THAT(describe_refusals(rules, 3, 1), testing::EndsWith("lets them past; 1 more rules"));
}

// Each rule of QualityConfig: the override is one that this config has, and the limit is then no narrower
// than what was measured.
TEST(Refusals, TheOverrideLetsTheDocumentsPast) {
  const auto past = [](const std::string& rule, double value) {
    const std::string set = override_past({.rule = rule, .documents = 1, .least = value, .most = value});
    return parse_config<DataConfig>("test", "{}", {set}).quality;
  };
  EXPECT_EQ(past("gopher_quality.max_words", 202651).gopher_quality.max_words, 202651);
  EXPECT_EQ(past("gopher_quality.min_stop_words", 1).gopher_quality.min_stop_words, 1);
  EXPECT_EQ(past("c4.min_sentences", 0).c4.min_sentences, 0);
  EXPECT_FALSE(past("c4.no_lorem_ipsum", 2).c4.no_lorem_ipsum);
  EXPECT_FALSE(past("c4.no_curly_bracket", 2).c4.no_curly_bracket);
  EXPECT_TRUE(past("c4.blocked_words", 1).c4.blocked_words.empty());
  for (const double share : {0.30001, 0.5, 0.9996, 1.0}) {
    const QualityConfig quality = past("gopher_repetition.max_duplicate_lines", share);
    EXPECT_GE(quality.gopher_repetition.max_duplicate_lines, share);
    EXPECT_LE(quality.gopher_repetition.max_duplicate_lines, 1);
    EXPECT_GE(past("max_replacement_ratio", share).max_replacement_ratio, share);
    EXPECT_LE(past("gopher_quality.min_alphabetic_words", share).gopher_quality.min_alphabetic_words, share);
  }
  for (const char* rule : {"no_text", "dedup.exact", "dedup.near"})
    EXPECT_EQ(override_past({.rule = rule, .documents = 1}), "");
}

}  // namespace
}  // namespace flywheel::data
