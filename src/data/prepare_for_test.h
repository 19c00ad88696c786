// Raw files for tests of prepare(), and what its tests ask of a result. Only for tests.
#pragma once

#include <string>
#include <vector>

#include "base/hash.h"
#include "base/philox.h"
#include "data/prepare.h"

namespace flywheel::data {

inline std::string sentence(Philox& rng) {
  static const char* const kNouns[] = {"wheel",  "engine",  "river",  "teacher",
                                       "garden", "machine", "letter", "winter"};
  static const char* const kVerbs[] = {"turns",   "follows", "carries", "remembers",
                                       "crosses", "builds",  "opens"};
  static const char* const kRest[] = {"to the north",     "with great care",      "of its own will",
                                      "and that is all",  "in the early morning", "behind the old house",
                                      "without any sound"};
  return std::string("The ") + kNouns[rng.below(8)] + std::to_string(rng.below(500)) + " " +
         kVerbs[rng.below(7)] + " a " + kNouns[rng.below(8)] + std::to_string(rng.below(500)) + " " +
         kRest[rng.below(7)] + ".";
}

// Pages with furniture, lines with errors, exact and near copies, pages that the rules refuse.
inline void make_raw(const std::string& folder) {
  Philox rng(31);
  for (int page = 0; page < 40; ++page) {
    std::string text;
    for (int p = 0; p < 6; ++p) {
      text += "<p>";
      for (int s = 0; s < 4; ++s) text += sentence(rng) + " ";
      text += "</p>\n";
    }
    const std::string name = fmt::format("{}/html/page{:02}.html", folder, page);
    write_file(
        name, "<html><body><nav><a href=/>Home</a></nav><main><h1>Page</h1>" + text + "</main></body></html>")
        .value();
    if (page == 7)
      write_file(folder + "/html/z-copy.html", "<body><main><h1>Page</h1>" + text + "</main></body>").value();
    if (page == 8) {
      text.replace(text.find("The "), 4, "One ");
      write_file(folder + "/html/z-near.html", "<body><main><h1>Page</h1>" + text + "</main></body>").value();
    }
  }
  write_file(folder + "/html/short.html", "<p>Too short to be of any use to anybody, sadly.</p>").value();
  write_file(folder + "/html/none.html", "<script>nothing()</script>").value();
  std::string lines;
  for (int i = 0; i < 60; ++i) {
    std::string text;
    for (int s = 0; s < 20; ++s) text += sentence(rng) + (s % 5 == 4 ? "\\n" : " ");
    lines += "{\"text\": \"" + text + "\"}\n";
    if (i % 20 == 3) lines += "{\"text\": broken\n";
  }
  write_file(folder + "/lines.jsonl", lines).value();
}

inline DataConfig small_config() {
  DataConfig config;
  config.name = "small";
  config.tokenizer.vocab_size = 400;
  config.shards.validation_fraction = 0.2;
  config.parquet = true;
  config.quality.gopher_repetition.enabled = false;
  return config;
}

inline std::string outputs_hash(const std::string& output) {
  std::string all;
  for (const char* file : {"documents.jsonl", "documents.parquet", "dropped.jsonl", "quarantined.jsonl",
                           "clusters.jsonl", "tokenizer/tokenizer.json", "shards/train/manifest.json",
                           "shards/train/shard-00000.tokens", "shards/validation/manifest.json"}) {
    all += sha256_file(output + "/" + file).value();
  }
  return sha256_hex(all);
}

inline std::vector<bool> reused(const PrepareReport& report) {
  std::vector<bool> out;
  for (const StageReport& stage : report.stages) out.push_back(stage.reused);
  return out;
}

}  // namespace flywheel::data
