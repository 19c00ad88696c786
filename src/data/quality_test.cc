#include "data/quality.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/env.h"
#include "base/file.h"
#include "base/philox.h"
#include "data/quality_internal.h"

namespace flywheel::data {
namespace {

// Prose in which no rule finds anything: sentences of different words with stop words.
std::string prose(int sentences, uint64_t seed = 1) {
  Philox rng(seed);
  std::string out;
  for (int i = 0; i < sentences; ++i) {
    out += "The ";
    for (int w = 0; w < 9; ++w) {
      for (uint64_t c = 3 + rng.below(6); c-- > 0;) out += static_cast<char>('a' + rng.below(26));
      out += w % 4 == 3 ? " of " : " ";
    }
    out += "end" + std::to_string(i) + ".\n";
  }
  return out;
}

std::string rule_of(std::string_view text, const QualityConfig& config = {}, std::string_view language = "") {
  return judge_quality(text, language, config).rule;
}

TEST(Quality, GoodProsePasses) {
  EXPECT_EQ(rule_of(prose(30)), "");
}

TEST(Quality, EachGopherRuleRefusesWithItsNumber) {
  const std::string good = prose(30);
  EXPECT_EQ(rule_of("The few words of this text."), "gopher_quality.min_words");
  QualityConfig config;
  config.gopher_quality.max_words = 200;
  EXPECT_EQ(rule_of(good, config), "gopher_quality.max_words");
  std::string text;
  for (int i = 0; i < 200; ++i) text += "a b c ";
  EXPECT_EQ(rule_of(text), "gopher_quality.min_mean_word_length");
  text.clear();
  for (int i = 0; i < 100; ++i) text += "extraordinarily" + std::to_string(i) + " ";
  EXPECT_EQ(rule_of(text), "gopher_quality.max_mean_word_length");
  text = good;
  for (int i = 0; i < 90; ++i) text += "#tag" + std::to_string(i) + " ";
  EXPECT_EQ(rule_of(text), "gopher_quality.max_hash_ratio");
  text.clear();
  for (int i = 0; i < 60; ++i) text += "word" + std::to_string(i) + "... ";
  EXPECT_EQ(rule_of(text), "gopher_quality.max_ellipsis_ratio");
  text.clear();
  for (int i = 0; i < 60; ++i)
    text += "- the seventh element of enumeration number " + std::to_string(i) + "\n";
  EXPECT_EQ(rule_of(text), "gopher_quality.max_bullet_lines");
  text = good;
  for (int i = 0; i < 15; ++i)
    text += "and so it goes on for many and many a word and then some " + std::to_string(i) + "…\n";
  EXPECT_EQ(rule_of(text), "gopher_quality.max_ellipsis_lines");
  text = good;
  for (int i = 0; i < 200; ++i) text += std::to_string(100000 + i * 77) + " ";
  EXPECT_EQ(rule_of(text), "gopher_quality.min_alphabetic_words");
  text.clear();
  for (int i = 0; i < 90; ++i) text += "keyword" + std::to_string(i) + " ";
  const QualityVerdict verdict = judge_quality(text, "", {});
  EXPECT_EQ(verdict.rule, "gopher_quality.min_stop_words");
  EXPECT_EQ(verdict.value, 0);
  EXPECT_EQ(verdict.threshold, 2);
}

TEST(Quality, RulesOfOneKindOfWritingLeaveOthersAlone) {
  std::string german, japanese, russian;
  for (int i = 0; i < 40; ++i) {
    const std::string n = std::to_string(i);
    german += "Der Wagen" + n + " rollt am Abend" + n + " langsam durch Gasse" + n + " und hält vor Haus" +
              n + ".\n";
    japanese += "猫" + n + "は窓の外を見て、" + n + "羽の鳥が飛ぶのを数えていた。\n";
    russian +=
        "Вечером" + n + " поезд" + n + " медленно подошёл к станции" + n + ", и пассажир" + n + " вышел.\n";
  }
  QualityConfig config;
  config.gopher_repetition.enabled = false;
  EXPECT_EQ(rule_of(german, config, "de"), "");
  EXPECT_EQ(rule_of(german, config, "en"), "gopher_quality.min_stop_words");
  EXPECT_EQ(rule_of(japanese, config), "");
  EXPECT_EQ(rule_of(russian, config), "");
}

TEST(Quality, CodeIsNotProse) {
  const std::string code = "```\n" + [] {
    std::string all;
    for (int i = 0; i < 300; ++i) all += "{ } ; = ( ) [ ] # \n";
    return all;
  }() + "```\n";
  EXPECT_EQ(rule_of(prose(30) + code), "");
}

TEST(Quality, C4) {
  QualityConfig config;
  config.gopher_quality.enabled = config.gopher_repetition.enabled = false;
  EXPECT_EQ(rule_of("One sentence. Two sentences.", config), "c4.min_sentences");
  EXPECT_EQ(rule_of("One. Two. Three.", config), "");
  EXPECT_EQ(rule_of("一。二。三。", config), "");
  EXPECT_EQ(rule_of("One. Two. Three. Lorem Ipsum dolor.", config), "c4.no_lorem_ipsum");
  config.c4.no_curly_bracket = true;
  EXPECT_EQ(rule_of("One. Two. Three. {", config), "c4.no_curly_bracket");
  config.c4.blocked_words = {"grue"};
  EXPECT_EQ(rule_of("One. Two. A GRUE comes.", config), "c4.blocked_words");
  EXPECT_EQ(rule_of("One. Two. It is gruesome.", config), "");
  EXPECT_EQ(rule_of("One. Two. Three. \uFFFD\uFFFD\uFFFD", config), "max_replacement_ratio");

  std::map<std::string, int64_t> removed;
  const std::string text =
      "# Title\nA line that ends well.\nPlease enable JavaScript to see this.\nJavaScript was made in ten "
      "days.\n"
      "Read our Privacy Policy and more\n```\nno privacy policy(code)\n```\nshort";
  EXPECT_EQ(filter_lines(text, {}, removed),
            "# Title\nA line that ends well.\nJavaScript was made in ten days.\n```\nno privacy "
            "policy(code)\n```\nshort");
  EXPECT_EQ(removed.at("c4.no_javascript_lines"), 1);
  EXPECT_EQ(removed.at("c4.no_policy_lines"), 1);
  EXPECT_EQ(filter_lines(text, {.terminal_punctuation = true, .min_line_words = 5}, removed),
            "A line that ends well.\nJavaScript was made in ten days.\n```\nno privacy policy(code)\n```");
  EXPECT_EQ(filter_lines(std::string(2000, 'x') + "\nkept line", {}, removed), "kept line");
}

// The n-gram rules against the plainest way to compute them.
struct Plain {
  std::vector<std::string> words;
  size_t chars = 0;
  std::string gram(size_t i, size_t n) const {
    std::string out;
    for (size_t k = 0; k < n; ++k) out += words[i + k] + " ";
    return out;
  }
  size_t length(size_t i, size_t n) const { return gram(i, n).size() - n; }
  double top(size_t n) const {
    std::map<std::string, size_t> count;
    size_t best = 0;
    for (size_t i = 0; i + n <= words.size(); ++i) {
      if (++count[gram(i, n)] > 1) best = std::max(best, count[gram(i, n)] * length(i, n));
    }
    return static_cast<double>(best) / static_cast<double>(chars);
  }
  double duplicate(size_t n) const {
    std::map<std::string, size_t> count;
    std::vector<bool> covered(words.size(), false);
    for (size_t i = 0; i + n <= words.size(); ++i) {
      if (++count[gram(i, n)] > 1) std::fill_n(covered.begin() + static_cast<std::ptrdiff_t>(i), n, true);
    }
    size_t sum = 0;
    for (size_t i = 0; i < words.size(); ++i) sum += covered[i] ? words[i].size() : 0;
    return static_cast<double>(sum) / static_cast<double>(chars);
  }
};

TEST(Quality, RepetitionAgreesWithThePlainDefinition) {
  Philox rng(5);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    Plain plain;
    const uint64_t vocabulary = 2 + rng.below(40), count = 12 + rng.below(120);
    for (uint64_t i = 0; i < count; ++i) {
      std::string word(1 + rng.below(3), static_cast<char>('a' + rng.below(26)));
      word += static_cast<char>('A' + rng.below(vocabulary) % 26);
      if (i > 8 && rng.below(3) == 0) word = plain.words[i - 5];
      plain.words.push_back(word);
      plain.chars += word.size();
      text += word + (rng.below(9) == 0 ? "\n" : " ");
    }
    // Only one rule at a time, with a threshold that is just below or at what the plain way finds.
    double GopherRepetitionConfig::*const rules[] = {&GopherRepetitionConfig::max_top_2gram_chars,
                                                     &GopherRepetitionConfig::max_top_3gram_chars,
                                                     &GopherRepetitionConfig::max_top_4gram_chars,
                                                     &GopherRepetitionConfig::max_duplicate_5gram_chars,
                                                     &GopherRepetitionConfig::max_duplicate_6gram_chars,
                                                     &GopherRepetitionConfig::max_duplicate_7gram_chars,
                                                     &GopherRepetitionConfig::max_duplicate_8gram_chars,
                                                     &GopherRepetitionConfig::max_duplicate_9gram_chars,
                                                     &GopherRepetitionConfig::max_duplicate_10gram_chars};
    for (size_t r = 0; r < std::size(rules); ++r) {
      const double wanted = r < 3 ? plain.top(r + 2) : plain.duplicate(r + 2);
      GopherRepetitionConfig config;
      config.max_duplicate_lines = config.max_duplicate_paragraphs = config.max_duplicate_line_chars =
          config.max_duplicate_paragraph_chars = 9;
      for (const auto rule : rules) config.*rule = 9;
      config.*rules[r] = wanted;
      EXPECT_TRUE(judge_repetition(read_prose(text), config).keep) << round << " rule " << r;
      if (wanted == 0) continue;
      config.*rules[r] = wanted - 1e-9;
      const QualityVerdict verdict = judge_repetition(read_prose(text), config);
      EXPECT_FALSE(verdict.keep) << round << " rule " << r;
      EXPECT_NEAR(verdict.value, wanted, 1e-12);
    }
  }
}

TEST(Quality, RepeatedLinesAndParagraphs) {
  QualityConfig config;
  config.c4.enabled = false;
  std::string lines = prose(30), paragraphs = prose(30);
  for (int i = 0; i < 20; ++i) lines += "The same line of it.\n";
  EXPECT_EQ(rule_of(lines, config), "gopher_repetition.max_duplicate_lines");
  for (int i = 0; i < 3; ++i)
    paragraphs +=
        "\nThe first of both is this line " + std::to_string(0) + ".\nAnd of the second there is that.\n";
  EXPECT_EQ(rule_of(paragraphs, config), "gopher_repetition.max_duplicate_paragraphs");
}

TEST(Quality, KnownGoodAndBadTexts) {
  const std::string folder = env::test_data() + "/web/dedup-fixtures/";
  if (env::test_data().empty() || !path_exists(folder)) GTEST_SKIP() << "no fixtures";
  EXPECT_EQ(rule_of(read_file(folder + "high_quality_wiki_reference.txt").value()), "");
  QualityConfig prose_only;
  prose_only.c4.enabled = false;
  EXPECT_EQ(rule_of(read_file(folder + "moby_extracted.txt").value(), prose_only), "");
  // A page of forum links: C4's line rules leave next to nothing of it.
  std::map<std::string, int64_t> removed;
  const C4Config lines{.terminal_punctuation = true, .min_line_words = 5};
  const std::string forum = read_file(folder + "low_quality_cc.txt").value();
  EXPECT_LT(filter_lines(forum, lines, removed).size(), forum.size() / 2);
}

}  // namespace
}  // namespace flywheel::data
