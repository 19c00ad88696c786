#include "data/dedup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/env.h"
#include "base/file.h"
#include "base/philox.h"
#include "base/result.h"

namespace flywheel::data {
namespace {

using testing::ElementsAre;

std::vector<std::string> random_words(Philox& rng, size_t n) {
  std::vector<std::string> words(n);
  for (std::string& word : words) word = "w" + std::to_string(rng.below(100000));
  return words;
}

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += word + " ";
  return out;
}

double jaccard(const std::vector<std::string>& a, const std::vector<std::string>& b, size_t n) {
  const auto grams = [&](const std::vector<std::string>& words) {
    std::set<std::string> out;
    for (size_t i = 0; i + n <= words.size(); ++i) {
      out.insert(join({words.begin() + static_cast<std::ptrdiff_t>(i),
                       words.begin() + static_cast<std::ptrdiff_t>(i + n)}));
    }
    return out;
  };
  const std::set<std::string> x = grams(a), y = grams(b);
  size_t both = 0;
  for (const std::string& gram : x) both += y.count(gram);
  return static_cast<double>(both) / static_cast<double>(x.size() + y.size() - both);
}

std::vector<Sketch> sketch_all(const std::vector<std::string>& texts, const DedupConfig& config = {}) {
  std::vector<Sketch> out;
  for (const std::string& text : texts) out.push_back(sketch_text(text, config));
  return out;
}

TEST(Dedup, EstimatesAreNearTheTrueSimilarityAndBandsMeetAsOftenAsTheyShould) {
  Philox rng(3);
  double error = 0, bias = 0;
  int pairs = 0, met_high = 0, high = 0, met_low = 0, low = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> a = random_words(rng, 400), b = a;
    for (uint64_t edits = rng.below(round % 2 == 0 ? 15 : 150); edits-- > 0;)
      b[rng.below(b.size())] = "x" + std::to_string(rng.below(99999));
    const double truth = jaccard(a, b, 5);
    const std::vector<Sketch> sketches = sketch_all({join(a), join(b)});
    const double estimate = estimate_similarity(sketches[0], sketches[1]);
    error += (estimate - truth) * (estimate - truth);
    bias += estimate - truth;
    ++pairs;
    ThreadPool pool(1);
    const bool met = find_duplicates(sketches, {}, pool).duplicate_of[1] == 0;
    if (truth > 0.88) ++high, met_high += met ? 1 : 0;
    if (truth < 0.4) ++low, met_low += met ? 1 : 0;
  }
  // 112 hashes: a standard error of at most 0.047 for one estimate.
  EXPECT_LT(std::sqrt(error / pairs), 0.055);
  EXPECT_LT(std::abs(bias / pairs), 0.01);
  EXPECT_GT(high, 5);
  EXPECT_GE(met_high, high - 1);
  EXPECT_GT(low, 50);
  EXPECT_LE(met_low, low / 20 + 1);
}

TEST(Dedup, TheFirstStaysAndEveryDuplicateNamesIt) {
  Philox rng(9);
  std::vector<std::string> texts;
  const std::vector<std::string> base = random_words(rng, 300);
  texts.push_back(join(random_words(rng, 300)));
  texts.push_back(join(base));
  std::vector<std::string> near = base;
  near[150] = "changed";
  texts.push_back(join(near));
  texts.push_back(join(random_words(rng, 300)));
  texts.push_back(join(base));
  texts.push_back("");
  texts.push_back("");
  ThreadPool pool(2);
  const DuplicateReport report = find_duplicates(sketch_all(texts), {}, pool);
  EXPECT_THAT(report.duplicate_of, ElementsAre(-1, -1, 1, -1, 1, -1, 5));
  EXPECT_THAT(report.exact, ElementsAre(0, 0, 0, 0, 1, 0, 1));
  ASSERT_EQ(report.clusters.size(), 2u);
  EXPECT_EQ(report.clusters[0].first, 1);
  EXPECT_THAT(report.clusters[0].members, ElementsAre(2, 4));
  const DuplicateReport exact_only = find_duplicates(sketch_all(texts), {.near = false}, pool);
  EXPECT_THAT(exact_only.duplicate_of, ElementsAre(-1, -1, -1, -1, 1, -1, 5));
  const DuplicateReport neither = find_duplicates(sketch_all(texts), {.exact = false, .near = false}, pool);
  EXPECT_THAT(neither.duplicate_of, testing::Each(-1));
}

TEST(Dedup, TheSameForAnyNumberOfThreads) {
  Philox rng(21);
  std::vector<std::string> texts;
  for (int i = 0; i < 400; ++i) {
    std::vector<std::string> words = random_words(rng, 120);
    for (uint64_t copies = rng.below(4); copies-- > 0;) {
      texts.push_back(join(words));
      words[rng.below(words.size())] = "y";
    }
  }
  const std::vector<Sketch> sketches = sketch_all(texts);
  ThreadPool one(1);
  const DuplicateReport wanted = find_duplicates(sketches, {}, one);
  for (const int threads : {2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(find_duplicates(sketches, {}, pool).duplicate_of, wanted.duplicate_of);
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    if (wanted.duplicate_of[i] >= 0) {
      EXPECT_LT(wanted.duplicate_of[i], static_cast<int64_t>(i));
      EXPECT_EQ(wanted.duplicate_of[static_cast<size_t>(wanted.duplicate_of[i])], -1);
    }
  }
}

TEST(Dedup, LanguagesCaseAndPunctuation) {
  const auto same = [](std::string_view a, std::string_view b) {
    return estimate_similarity(sketch_text(a, {}), sketch_text(b, {}));
  };
  EXPECT_EQ(same("One, two; three. Four! FIVE six", "one two three four five  six"), 1);
  EXPECT_EQ(same("ÄPFEL und Birnen, sagte er laut.", "äpfel UND birnen – sagte er: laut"), 1);
  EXPECT_GT(same("吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。",
                 "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当もつかぬ。"),
            0.4);
  EXPECT_LT(same("吾輩は猫である。名前はまだ無い。", "国境の長いトンネルを抜けると雪国であった。"), 0.1);
  EXPECT_THROW(sketch_text("x", {.bands = 0}), UserError);
  EXPECT_THROW(sketch_text("x", {.bands = 100, .rows = 100}), UserError);
}

TEST(Dedup, LicensesThatDifferInTheirHeadAreNear) {
  const std::string folder = env::test_data() + "/web/dedup-fixtures/documents_with_fuzzy_duplicates/";
  if (env::test_data().empty() || !path_exists(folder)) GTEST_SKIP() << "no fixtures";
  const std::vector<Sketch> sketches = sketch_all({read_file(folder + "react_mit_license.txt").value(),
                                                   read_file(folder + "pytorch_license.txt").value(),
                                                   read_file(folder + "rails_mit_license.txt").value()});
  ThreadPool pool(2);
  EXPECT_THAT(find_duplicates(sketches, {}, pool).duplicate_of, ElementsAre(-1, -1, 0));
}

}  // namespace
}  // namespace flywheel::data
