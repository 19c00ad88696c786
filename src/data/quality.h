// Rules that say whether a document is worth learning from: Gopher's (Rae et al. 2021, tables A1 and A.1.1:
// quality and repetition) and C4's (Raffel et al. 2020, section 2.2). Every threshold is a named parameter
// whose default is the published one, unless its comment says otherwise.
//
// Language: counts and repetition hold for any. Rules made for one kind of writing are applied only to it:
// mean word length not to scripts without spaces, stop words not to pages that declare another language than
// English or are not in Latin script. Code between ``` lines is not prose: the word rules leave it out.
//
// Threads: any. Errors: none.
//
//   QualityVerdict verdict = judge_quality(document.text, document.language, config);   // first rule that
//   refuses if (!verdict.keep) report(verdict.rule, verdict.value, verdict.threshold);
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace flywheel::data {

struct GopherQualityConfig {
  bool enabled = true;
  int min_words = 50;
  int max_words = 100000;
  double min_mean_word_length = 3;
  double max_mean_word_length = 10;
  double max_hash_ratio = 0.1;      // '#' for each word
  double max_ellipsis_ratio = 0.1;  // "..." or "…" for each word
  double max_bullet_lines = 0.9;    // share of lines that start with a bullet
  double max_ellipsis_lines = 0.3;  // share of lines that end with an ellipsis
  double min_alphabetic_words = 0.8;
  int min_stop_words = 2;  // different ones
  std::vector<std::string> stop_words = {"the", "be", "to", "of", "and", "that", "have", "with"};
  template <typename V>
  void fields(V& v) {
    v("enabled", enabled), v("min_words", min_words), v("max_words", max_words);
    v("min_mean_word_length", min_mean_word_length), v("max_mean_word_length", max_mean_word_length);
    v("max_hash_ratio", max_hash_ratio), v("max_ellipsis_ratio", max_ellipsis_ratio);
    v("max_bullet_lines", max_bullet_lines), v("max_ellipsis_lines", max_ellipsis_lines);
    v("min_alphabetic_words", min_alphabetic_words), v("min_stop_words", min_stop_words);
    v("stop_words", stop_words);
  }
};

struct GopherRepetitionConfig {
  bool enabled = true;
  double max_duplicate_lines = 0.30;
  double max_duplicate_paragraphs = 0.30;
  double max_duplicate_line_chars = 0.20;  // share of the characters
  double max_duplicate_paragraph_chars = 0.20;
  double max_top_2gram_chars = 0.20;  // characters in the most frequent 2-gram of words
  double max_top_3gram_chars = 0.18;
  double max_top_4gram_chars = 0.16;
  double max_duplicate_5gram_chars = 0.15;  // characters in n-grams that occur more than once
  double max_duplicate_6gram_chars = 0.14;
  double max_duplicate_7gram_chars = 0.13;
  double max_duplicate_8gram_chars = 0.12;
  double max_duplicate_9gram_chars = 0.11;
  double max_duplicate_10gram_chars = 0.10;
  template <typename V>
  void fields(V& v) {
    v("enabled", enabled), v("max_duplicate_lines", max_duplicate_lines);
    v("max_duplicate_paragraphs", max_duplicate_paragraphs);
    v("max_duplicate_line_chars", max_duplicate_line_chars);
    v("max_duplicate_paragraph_chars", max_duplicate_paragraph_chars);
    v("max_top_2gram_chars", max_top_2gram_chars), v("max_top_3gram_chars", max_top_3gram_chars);
    v("max_top_4gram_chars", max_top_4gram_chars), v("max_duplicate_5gram_chars", max_duplicate_5gram_chars);
    v("max_duplicate_6gram_chars", max_duplicate_6gram_chars);
    v("max_duplicate_7gram_chars", max_duplicate_7gram_chars);
    v("max_duplicate_8gram_chars", max_duplicate_8gram_chars);
    v("max_duplicate_9gram_chars", max_duplicate_9gram_chars);
    v("max_duplicate_10gram_chars", max_duplicate_10gram_chars);
  }
};

struct C4Config {
  bool enabled = true;
  // These two are part of C4 and off by default here: the first removes headings, lists and tables, the
  // second every page with code, and both are kept on purpose by the extraction.
  bool terminal_punctuation = false;  // drop lines that do not end with . ! ? or a closing quote
  bool no_curly_bracket = false;      // drop pages with '{'
  int min_line_words = 0;             // C4: 5, which removes headings and short items
  int max_word_length = 1000;         // drop lines with a longer word
  int min_sentences = 3;
  bool no_javascript_lines = true;  // drop lines that ask for JavaScript
  bool no_policy_lines = true;      // drop lines about cookies, privacy and terms of use
  bool no_lorem_ipsum = true;
  std::vector<std::string> blocked_words;  // drop pages with one of them (C4 used a list of obscene words)
  template <typename V>
  void fields(V& v) {
    v("enabled", enabled), v("terminal_punctuation", terminal_punctuation);
    v("no_curly_bracket", no_curly_bracket), v("min_line_words", min_line_words);
    v("max_word_length", max_word_length), v("min_sentences", min_sentences);
    v("no_javascript_lines", no_javascript_lines), v("no_policy_lines", no_policy_lines);
    v("no_lorem_ipsum", no_lorem_ipsum), v("blocked_words", blocked_words);
  }
};

struct QualityConfig {
  GopherQualityConfig gopher_quality;
  GopherRepetitionConfig gopher_repetition;
  C4Config c4;
  double max_replacement_ratio = 0.01;  // U+FFFD for each character: the encoding was not found
  template <typename V>
  void fields(V& v) {
    v("gopher_quality", gopher_quality), v("gopher_repetition", gopher_repetition), v("c4", c4);
    v("max_replacement_ratio", max_replacement_ratio);
  }
};

struct QualityVerdict {
  bool keep = true;
  std::string rule;  // "gopher_quality.min_words"
  double value = 0, threshold = 0;
};

// C4's line rules: the text without the lines they refuse; counts of removed lines by rule are added to
// `removed`.
std::string filter_lines(std::string_view text, const C4Config& config,
                         std::map<std::string, int64_t>& removed);

QualityVerdict judge_quality(std::string_view text, std::string_view language, const QualityConfig& config);

}  // namespace flywheel::data
