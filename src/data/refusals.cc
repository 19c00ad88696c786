#include "data/refusals.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/json.h"

namespace flywheel::data {
namespace {

// The rule's own name, behind its group.
std::string_view own_name(std::string_view rule) {
  return rule.substr(rule.find('.') == std::string_view::npos ? 0 : rule.find('.') + 1);
}

bool in_quality(std::string_view rule) {
  return rule.starts_with("gopher_") || rule.starts_with("c4.") || rule == "max_replacement_ratio";
}

// Counts whole, shares to four places, as 0.25 and not 0.2500.
std::string number_text(double value) {
  if (value == std::floor(value)) return fmt::format("{:.0f}", value);
  std::string text = fmt::format("{:.4f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  return text.ends_with('.') ? "0" : text;  // of less than four places
}

bool is_least(std::string_view rule) {
  return own_name(rule).starts_with("min_");
}

bool is_most(std::string_view rule) {
  return own_name(rule).starts_with("max_");
}

}  // namespace

std::vector<Refusals> refusals(std::string_view dropped_lines) {
  std::map<std::string, Refusals> by_rule;
  while (!dropped_lines.empty()) {
    const size_t end = std::min(dropped_lines.find('\n'), dropped_lines.size());
    const Result<Json> line = parse_json(dropped_lines.substr(0, end), 4);
    dropped_lines.remove_prefix(std::min(end + 1, dropped_lines.size()));
    if (!line.ok()) continue;
    const std::string rule = text_of(*line, "rule");
    const auto number = [&](const char* key) {
      const auto it = line->find(key);
      return it != line->end() && it->is_number() ? it->get<double>() : 0;
    };
    if (rule.empty()) continue;
    const double value = number("value");
    Refusals& one = by_rule[rule];
    one.least = one.documents == 0 ? value : std::min(one.least, value);
    one.most = one.documents == 0 ? value : std::max(one.most, value);
    one.rule = rule, one.threshold = number("threshold"), ++one.documents;
  }
  std::vector<Refusals> out;
  for (auto& [rule, one] : by_rule) out.push_back(std::move(one));
  std::ranges::stable_sort(out, std::greater<>(), &Refusals::documents);
  return out;
}

std::string override_past(const Refusals& rule) {
  if (!in_quality(rule.rule)) return "";
  const std::string key = "quality." + rule.rule + "=";
  if (is_least(rule.rule)) return key + number_text(std::floor(rule.least * 1000) / 1000);
  if (is_most(rule.rule)) return key + number_text(std::ceil(rule.most * 1000) / 1000);
  return key + (rule.rule == "c4.blocked_words" ? "[]" : "false");
}

std::string describe_refusals(const std::vector<Refusals>& rules, int64_t documents, size_t most_rules) {
  std::string out;
  for (size_t i = 0; i < std::min(most_rules, rules.size()); ++i) {
    const Refusals& one = rules[i];
    out += fmt::format("{}{} dropped {} of {}", i == 0 ? "" : "; ", one.rule, one.documents, documents);
    const std::string range = one.least == one.most ? number_text(one.most)
                                                    : number_text(one.least) + " to " + number_text(one.most);
    if (is_least(one.rule) || is_most(one.rule))
      out += fmt::format(" ({} where {} is the {})", range, number_text(one.threshold),
                         is_least(one.rule) ? "least" : "most");
    if (const std::string past = override_past(one); !past.empty())
      out += ", `--set " + past + "` lets " + (one.documents == 1 ? "it" : "them") + " past";
  }
  if (rules.size() > most_rules) out += fmt::format("; {} more rules", rules.size() - most_rules);
  return out;
}

}  // namespace flywheel::data
