// What can be known of a config before any work, and what the report says of it.
#include "data/stage_internal.h"
#include "model/bpe_trainer.h"
#include "model/tokenizer.h"

namespace flywheel::data {
namespace {

template <typename T>
void check_range(const std::string& key, T value, T least, T most) {
  if (value >= least && value <= most) return;  // not a number fails too
  throw UserError(key, fmt::format("{} is not between {} and {}", value, least, most));
}

template <typename T>
void check_least(const std::string& key, T value, T least) {
  if (value >= least) return;
  throw UserError(key, fmt::format("{} must be at least {}", value, least));
}

void check(const GopherQualityConfig& rules) {
  const std::string at = "quality.gopher_quality.";
  check_least(at + "min_words", rules.min_words, 0);
  check_least(at + "max_words", rules.max_words, rules.min_words);
  check_least(at + "min_mean_word_length", rules.min_mean_word_length, 0.0);
  check_least(at + "max_mean_word_length", rules.max_mean_word_length, rules.min_mean_word_length);
  check_least(at + "max_hash_ratio", rules.max_hash_ratio, 0.0);
  check_least(at + "max_ellipsis_ratio", rules.max_ellipsis_ratio, 0.0);
  check_range(at + "max_bullet_lines", rules.max_bullet_lines, 0.0, 1.0);
  check_range(at + "max_ellipsis_lines", rules.max_ellipsis_lines, 0.0, 1.0);
  check_range(at + "min_alphabetic_words", rules.min_alphabetic_words, 0.0, 1.0);
  check_range(at + "min_stop_words", rules.min_stop_words, 0, static_cast<int>(rules.stop_words.size()));
}

// Every threshold of these rules is a share.
struct ShareChecker {
  void operator()(const char*, bool) const {}
  void operator()(const char* key, double value) const {
    check_range(std::string("quality.gopher_repetition.") + key, value, 0.0, 1.0);
  }
};

void check(const QualityConfig& quality) {
  check(quality.gopher_quality);
  GopherRepetitionConfig repetition = quality.gopher_repetition;
  ShareChecker shares;
  repetition.fields(shares);
  check_least("quality.c4.min_line_words", quality.c4.min_line_words, 0);
  check_least("quality.c4.max_word_length", quality.c4.max_word_length, 1);
  check_least("quality.c4.min_sentences", quality.c4.min_sentences, 0);
  check_range("quality.max_replacement_ratio", quality.max_replacement_ratio, 0.0, 1.0);
}

void check(const TokenizeConfig& config) {
  if (config.document_end.empty()) {
    throw UserError("tokenizer.document_end", "a token is needed", "the default is <|endoftext|>");
  }
  check_least<int64_t>("tokenizer.train_bytes", config.train_bytes, 0);
  if (config.path.empty()) {
    const Result<void> trainable = model::check(trainer_config(config));
    if (!trainable.ok()) throw UserError("tokenizer", trainable.error().message);
    return;
  }
  const Result<std::string> bytes = read_file(tokenizer_file(config));
  if (!bytes.ok())
    throw UserError("tokenizer.path", bytes.error().message, "give a tokenizer.json or its folder");
  const Result<model::Tokenizer> tokenizer = model::Tokenizer::from_json(bytes.value());
  if (!tokenizer.ok())
    throw UserError("tokenizer.path", tokenizer_file(config) + ": " + tokenizer.error().message);
  (void)document_end_of(*tokenizer, config);
}

// Reads a config's fields as texts.
struct Lines {
  std::string prefix;
  bool enabled = true;
  std::vector<RuleSetting> rules;

  void add(const char* key, bool on, std::string value) {
    rules.push_back({prefix + key, on && enabled, std::move(value)});
  }
  void operator()(const char* key, bool& value) {
    if (std::string_view(key) == "enabled") {
      enabled = value;
    } else {
      add(key, value, "");
    }
  }
  void operator()(const char* key, int& value) {
    // C4's smallest number of words in a line: none are too few.
    add(key, std::string_view(key) != "min_line_words" || value > 0, fmt::format("{}", value));
  }
  void operator()(const char* key, double& value) { add(key, true, fmt::format("{}", value)); }
  void operator()(const char* key, std::vector<std::string>& words) {
    add(key, !words.empty(), fmt::format("{} words", words.size()));
  }
};

template <typename Config>
void append_rules(const std::string& prefix, Config config, std::vector<RuleSetting>& out) {
  Lines lines{.prefix = prefix};
  config.fields(lines);
  out.insert(out.end(), lines.rules.begin(), lines.rules.end());
}

}  // namespace

void check(const DataConfig& config) {
  check(config.input);
  check_least("extract.max_depth", config.extract.max_depth, 1);
  check_least("extract.max_attributes", config.extract.max_attributes, 0);
  check(config.quality);
  check(config.dedup);
  check(config.tokenizer);
  check_least<int64_t>("shards.shard_tokens", config.shards.shard_tokens, 1);
  if (!(config.shards.validation_fraction >= 0 && config.shards.validation_fraction < 1)) {
    throw UserError("shards.validation_fraction", "must be at least 0 and below 1");
  }
}

std::vector<RuleSetting> rules_of(const DataConfig& config) {
  std::vector<RuleSetting> rules;
  append_rules("extract.", config.extract, rules);
  append_rules("unicode.", config.unicode, rules);
  append_rules("gopher_quality.", config.quality.gopher_quality, rules);
  append_rules("gopher_repetition.", config.quality.gopher_repetition, rules);
  append_rules("c4.", config.quality.c4, rules);
  rules.push_back({"max_replacement_ratio", true, fmt::format("{}", config.quality.max_replacement_ratio)});
  const DedupConfig& dedup = config.dedup;
  rules.push_back({"dedup.exact", dedup.exact, ""});
  rules.push_back(
      {"dedup.near", dedup.near,
       fmt::format("{} bands of {} hashes, {}-grams", dedup.bands, dedup.rows, dedup.ngram_words)});
  return rules;
}

}  // namespace flywheel::data
