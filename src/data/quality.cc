#include "data/quality.h"

#include <algorithm>
#include <array>

#include "data/quality_internal.h"

namespace flywheel::data {
namespace {

bool ends_with_any(std::string_view text, std::span<const std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return text.ends_with(end); });
}

constexpr std::string_view kTerminal[] = {".",  "!",  "?",  "\"", "”", "’", "»",  "…",
                                          "。", "！", "？", "।",  "؟", "۔", "」", "』"};
constexpr std::string_view kEllipsis[] = {"...", "…"};
constexpr std::string_view kBullets[] = {"- ", "* ", "• ", "‣ ", "▶", "◀", "◦ ",
                                         "■",  "□",  "▪",  "▫",  "–", "●", "·"};
constexpr std::string_view kPolicy[] = {"terms of use", "privacy policy", "cookie policy",
                                        "uses cookies", "use of cookies", "use cookies"};

std::string lower_ascii(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c | 0x20 : c);
  return out;
}

std::string_view trimmed(std::string_view line) {
  while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
  while (!line.empty() && (line.back() == ' ' || line.back() == '\t')) line.remove_suffix(1);
  return line;
}

int64_t count(std::string_view text, std::string_view what) {
  int64_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string_view::npos; at += what.size()) ++n;
  return n;
}

double ratio(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

QualityVerdict refuse(std::string rule, double value, double threshold) {
  return {false, std::move(rule), value, threshold};
}

// Sentences end with a full stop or its like before a space or the end; a line of prose without one counts
// too.
int64_t count_sentences(const Prose& prose) {
  int64_t sentences = 0;
  for (const std::string_view raw : prose.lines) {
    const std::string_view line = trimmed(raw);
    if (line.empty() || line.starts_with("#") || line.starts_with("|")) continue;
    for (size_t i = 0; i < line.size(); ++i) {
      const char c = line[i];
      const bool ascii_end =
          (c == '.' || c == '!' || c == '?') && (i + 1 == line.size() || line[i + 1] == ' ');
      sentences += ascii_end ? 1 : 0;
    }
    for (const std::string_view end : {"。", "！", "？", "।", "؟", "۔"}) sentences += count(line, end);
  }
  return sentences;
}

QualityVerdict judge_gopher(const Prose& prose, std::string_view language,
                            const GopherQualityConfig& config) {
  const auto words = static_cast<int64_t>(prose.words.size());
  const auto rule = [](const char* name) { return std::string("gopher_quality.") + name; };
  if (prose.all_words < config.min_words) return refuse(rule("min_words"), prose.all_words, config.min_words);
  if (prose.all_words > config.max_words) return refuse(rule("max_words"), prose.all_words, config.max_words);
  if (words == 0) return {};  // nothing but code
  int64_t chars = 0, alphabetic = 0, spaceless = 0, marks = 0;
  for (const Word& word : prose.words) {
    chars += word.chars;
    alphabetic += word.alphabetic ? 1 : 0;
    spaceless += word.spaceless ? 1 : 0;
    // The marks of structure that extraction writes are not the author's words.
    const std::string_view t = word.text;
    marks += t == "-" || t == "|" || t == ">" || t.find_first_not_of('#') == std::string_view::npos ? 1 : 0;
  }
  const bool with_spaces = spaceless * 2 < words;
  const double mean = ratio(chars, words);
  if (with_spaces && mean < config.min_mean_word_length) {
    return refuse(rule("min_mean_word_length"), mean, config.min_mean_word_length);
  }
  if (with_spaces && mean > config.max_mean_word_length) {
    return refuse(rule("max_mean_word_length"), mean, config.max_mean_word_length);
  }
  int64_t hashes = 0, ellipses = 0, lines = 0, bullets = 0, ellipsis_lines = 0;
  for (const std::string_view raw : prose.lines) {
    std::string_view line = trimmed(raw);
    if (line.empty()) continue;
    ++lines;
    bullets += std::any_of(std::begin(kBullets), std::end(kBullets),
                           [&](std::string_view bullet) { return line.starts_with(bullet); })
                   ? 1
                   : 0;
    ellipsis_lines += ends_with_any(line, kEllipsis) ? 1 : 0;
    ellipses += count(line, "...") + count(line, "…");
    const size_t heading = line.find_first_not_of('#');
    if (heading <= 6 && line[heading] == ' ') line.remove_prefix(heading);  // npos is larger
    hashes += count(line, "#");
  }
  if (ratio(hashes, words) > config.max_hash_ratio) {
    return refuse(rule("max_hash_ratio"), ratio(hashes, words), config.max_hash_ratio);
  }
  if (ratio(ellipses, words) > config.max_ellipsis_ratio) {
    return refuse(rule("max_ellipsis_ratio"), ratio(ellipses, words), config.max_ellipsis_ratio);
  }
  if (ratio(bullets, lines) > config.max_bullet_lines) {
    return refuse(rule("max_bullet_lines"), ratio(bullets, lines), config.max_bullet_lines);
  }
  if (ratio(ellipsis_lines, lines) > config.max_ellipsis_lines) {
    return refuse(rule("max_ellipsis_lines"), ratio(ellipsis_lines, lines), config.max_ellipsis_lines);
  }
  if (ratio(alphabetic, words - marks) < config.min_alphabetic_words) {
    return refuse(rule("min_alphabetic_words"), ratio(alphabetic, words - marks),
                  config.min_alphabetic_words);
  }
  const bool english = language.empty() ? prose.latin_share > 0.5 : language.starts_with("en");
  if (english && with_spaces) {
    std::vector<bool> seen(config.stop_words.size(), false);
    for (const Word& word : prose.words) {
      if (word.text.size() > 8) continue;
      const std::string lower = lower_ascii(word.text);
      for (size_t i = 0; i < seen.size(); ++i) seen[i] = seen[i] || lower == config.stop_words[i];
    }
    const auto found = std::count(seen.begin(), seen.end(), true);
    if (found < config.min_stop_words) {
      return refuse(rule("min_stop_words"), static_cast<double>(found), config.min_stop_words);
    }
  }
  return {};
}

QualityVerdict judge_c4(std::string_view text, const Prose& prose, const C4Config& config) {
  if (config.no_curly_bracket) {
    if (const int64_t n = count(text, "{"); n > 0)
      return refuse("c4.no_curly_bracket", static_cast<double>(n), 0);
  }
  if (config.no_lorem_ipsum || !config.blocked_words.empty()) {
    const std::string lower = lower_ascii(text);
    if (config.no_lorem_ipsum) {
      if (const int64_t n = count(lower, "lorem ipsum"); n > 0) {
        return refuse("c4.no_lorem_ipsum", static_cast<double>(n), 0);
      }
    }
    for (const std::string& blocked : config.blocked_words) {
      const std::string word = lower_ascii(blocked);
      for (size_t at = 0; (at = lower.find(word, at)) != std::string::npos; at += word.size()) {
        const auto letter = [&](size_t i) {
          return i < lower.size() &&
                 (static_cast<uint8_t>(lower[i]) >= 0x80 || (lower[i] >= 'a' && lower[i] <= 'z'));
        };
        if ((at == 0 || !letter(at - 1)) && !letter(at + word.size()))
          return refuse("c4.blocked_words", 1, 0);
      }
    }
  }
  if (const int64_t n = count_sentences(prose); n < config.min_sentences) {
    return refuse("c4.min_sentences", static_cast<double>(n), config.min_sentences);
  }
  return {};
}

}  // namespace

Prose read_prose(std::string_view text) {
  Prose prose;
  std::vector<std::string_view> lines;
  split_lines(text, lines);
  bool code = false;
  std::vector<Word> words;
  int64_t latin = 0, letters = 0;
  for (const std::string_view line : lines) {
    if (line.starts_with("```")) {
      code = !code;
      continue;
    }
    split_words(line, words);
    prose.all_words += static_cast<int64_t>(words.size());
    if (code) continue;
    prose.lines.push_back(line);
    prose.words.insert(prose.words.end(), words.begin(), words.end());
    for (const Word& word : words) {
      const auto first = static_cast<uint8_t>(word.text[0]);
      letters += word.alphabetic ? 1 : 0;
      latin += word.alphabetic && (first < 0x80 || (first >= 0xC3 && first <= 0xC9)) ? 1 : 0;
    }
  }
  prose.latin_share = ratio(latin, letters);
  return prose;
}

std::string filter_lines(std::string_view text, const C4Config& config,
                         std::map<std::string, int64_t>& removed) {
  if (!config.enabled) return std::string(text);
  std::vector<std::string_view> lines;
  std::vector<Word> words;
  split_lines(text, lines);
  std::string out;
  out.reserve(text.size());
  bool code = false;
  const auto refused = [&](std::string_view line) -> const char* {
    const std::string_view bare = trimmed(line);
    if (bare.empty()) return nullptr;
    if (config.terminal_punctuation && !ends_with_any(bare, kTerminal)) return "c4.terminal_punctuation";
    if (config.min_line_words > 0 || bare.size() > static_cast<size_t>(config.max_word_length)) {
      split_words(bare, words);
      if (static_cast<int>(words.size()) < config.min_line_words) return "c4.min_line_words";
      for (const Word& word : words) {
        if (word.chars > config.max_word_length) return "c4.max_word_length";
      }
    }
    if (config.no_javascript_lines || config.no_policy_lines) {
      const std::string lower = lower_ascii(bare);
      // C4 drops each line with the word; here the line must also ask for it, so that writing about the
      // language stays.
      if (config.no_javascript_lines && lower.find("javascript") != std::string::npos &&
          (lower.find("enable") != std::string::npos || lower.find("disabled") != std::string::npos ||
           lower.find("requires javascript") != std::string::npos ||
           lower.find("turn on javascript") != std::string::npos)) {
        return "c4.no_javascript_lines";
      }
      if (config.no_policy_lines && bare.size() < 500) {
        for (const std::string_view policy : kPolicy) {
          if (lower.find(policy) != std::string::npos) return "c4.no_policy_lines";
        }
      }
    }
    return nullptr;
  };
  for (const std::string_view line : lines) {
    const bool fence = line.starts_with("```");
    if (fence) code = !code;
    if (const char* rule = fence || code ? nullptr : refused(line); rule != nullptr) {
      ++removed[rule];
      continue;
    }
    out += line;
    out += '\n';
  }
  while (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

QualityVerdict judge_quality(std::string_view text, std::string_view language, const QualityConfig& config) {
  const int64_t broken = count(text, "\xEF\xBF\xBD");
  if (broken > 0) {
    const double share = ratio(broken, static_cast<int64_t>(text.size()));
    if (share > config.max_replacement_ratio) {
      return refuse("max_replacement_ratio", share, config.max_replacement_ratio);
    }
  }
  const Prose prose = read_prose(text);
  if (config.gopher_quality.enabled) {
    QualityVerdict verdict = judge_gopher(prose, language, config.gopher_quality);
    if (!verdict.keep) return verdict;
  }
  if (config.c4.enabled) {
    QualityVerdict verdict = judge_c4(text, prose, config.c4);
    if (!verdict.keep) return verdict;
  }
  if (config.gopher_repetition.enabled) return judge_repetition(prose, config.gopher_repetition);
  return {};
}

}  // namespace flywheel::data
