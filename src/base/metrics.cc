#include "base/metrics.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace flywheel {
namespace {

bool valid_name(const std::string& name) {
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == ':';
  });
}

std::string escaped(const std::string& text, bool quote) {
  std::string out;
  for (const char c : text) {
    if (c == '\\')
      out += "\\\\";
    else if (c == '\n')
      out += "\\n";
    else if (c == '"' && quote)
      out += "\\\"";
    else
      out += c;
  }
  return out;
}

std::string labels_text(const Labels& labels, const std::string& le = "") {
  std::string out;
  for (const auto& [name, value] : labels) {
    out += (out.empty() ? "" : ",") + name + "=\"" + escaped(value, true) + "\"";
  }
  if (!le.empty()) out += (out.empty() ? "" : ",") + std::string("le=\"") + le + "\"";
  return out.empty() ? "" : "{" + out + "}";
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return fmt::format("{}", value);
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), buckets_(std::make_unique<std::atomic<uint64_t>[]>(bounds_.size() + 1)) {
  CHECK(std::is_sorted(bounds_.begin(), bounds_.end()), "histogram bounds must ascend");
}

void Histogram::observe(double value) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  buckets_[static_cast<size_t>(at)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

uint64_t Histogram::count() const {
  uint64_t total = 0;
  for (size_t i = 0; i <= bounds_.size(); ++i) total += buckets_[i].load(std::memory_order_relaxed);
  return total;
}

double Histogram::quantile(double q) const {
  const auto total = static_cast<double>(count());
  if (total == 0 || bounds_.empty()) return 0;
  double below = 0;
  for (size_t i = 0; i < bounds_.size(); ++i) {
    const auto here = static_cast<double>(buckets_[i].load(std::memory_order_relaxed));
    if (here > 0 && below + here >= q * total) {
      const double low = i == 0 ? 0 : bounds_[i - 1];
      return low + (bounds_[i] - low) * std::clamp((q * total - below) / here, 0.0, 1.0);
    }
    below += here;
  }
  return bounds_.back();
}

Metrics& Metrics::global() {
  static Metrics* metrics = new Metrics;  // never destroyed: threads may count until the end
  return *metrics;
}

Metrics::Series& Metrics::find(Kind kind, const std::string& name, const std::string& help,
                               const Labels& labels) {
  CHECK(valid_name(name), "metric name {}", name);
  auto [it, added] = families_.try_emplace(name, Family{kind, help, {}});
  CHECK(it->second.kind == kind, "metric {} was registered as another kind", name);
  return it->second.series[labels];
}

Counter& Metrics::counter(const std::string& name, const std::string& help, const Labels& labels) {
  const std::lock_guard lock(mutex_);
  Series& series = find(Kind::kCounter, name, help, labels);
  if (!series.counter) series.counter = std::make_unique<Counter>();
  return *series.counter;
}

Gauge& Metrics::gauge(const std::string& name, const std::string& help, const Labels& labels) {
  const std::lock_guard lock(mutex_);
  Series& series = find(Kind::kGauge, name, help, labels);
  if (!series.gauge) series.gauge = std::make_unique<Gauge>();
  return *series.gauge;
}

Histogram& Metrics::histogram(const std::string& name, const std::string& help, std::vector<double> bounds,
                              const Labels& labels) {
  const std::lock_guard lock(mutex_);
  Series& series = find(Kind::kHistogram, name, help, labels);
  if (!series.histogram) series.histogram = std::make_unique<Histogram>(std::move(bounds));
  return *series.histogram;
}

std::string Metrics::prometheus_text() const {
  const std::lock_guard lock(mutex_);
  std::string out;
  for (const auto& [name, family] : families_) {
    const char* type = family.kind == Kind::kCounter ? "counter"
                       : family.kind == Kind::kGauge ? "gauge"
                                                     : "histogram";
    out += "# HELP " + name + " " + escaped(family.help, false) + "\n# TYPE " + name + " " + type + "\n";
    for (const auto& [labels, series] : family.series) {
      if (series.counter) out += name + labels_text(labels) + " " + number(series.counter->value()) + "\n";
      if (series.gauge) out += name + labels_text(labels) + " " + number(series.gauge->value()) + "\n";
      if (!series.histogram) continue;
      const Histogram& h = *series.histogram;
      uint64_t cumulative = 0;
      for (size_t i = 0; i <= h.bounds_.size(); ++i) {
        cumulative += h.buckets_[i].load(std::memory_order_relaxed);
        const std::string le = i < h.bounds_.size() ? number(h.bounds_[i]) : "+Inf";
        out += name + "_bucket" + labels_text(labels, le) + " " + std::to_string(cumulative) + "\n";
      }
      out += name + "_sum" + labels_text(labels) + " " + number(h.sum()) + "\n";
      out += name + "_count" + labels_text(labels) + " " + std::to_string(cumulative) + "\n";
    }
  }
  return out;
}

}  // namespace flywheel
