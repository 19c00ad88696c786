// Counters, gauges and histograms, printed in Prometheus' text format.
//
// Metrics live as long as the process; a room keeps references to its own in its metrics.h. Threads: all
// calls may come from any thread; add/set/observe take no lock.
//
//   Counter& steps = Metrics::global().counter("flywheel_train_steps_total", "Optimizer steps taken");
//   steps.add(1);
//   Histogram& ttft = Metrics::global().histogram("time_to_first_token_seconds", "...", {0.01, 0.1, 1});
//   ttft.observe(0.02);
//   std::string page = Metrics::global().prometheus_text();
//
// A name is registered once; asking again with the same labels gives the same object. Bad names: CHECK.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace flywheel {

using Labels = std::map<std::string, std::string>;

class Counter {
 public:
  void add(double amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Gauge {
 public:
  void set(double value) { value_.store(value, std::memory_order_relaxed); }
  void add(double amount) { value_.fetch_add(amount, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Histogram {
 public:
  // `bounds`: upper edges of the buckets, ascending; +Inf is added.
  explicit Histogram(std::vector<double> bounds);
  void observe(double value);
  uint64_t count() const;
  double sum() const { return sum_.load(std::memory_order_relaxed); }
  // Value below which a share `q` of the observations lies, linear within a bucket; 0 when empty.
  double quantile(double q) const;

 private:
  friend class Metrics;
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> buckets_;  // one more than bounds
  std::atomic<double> sum_{0};
};

class Metrics {
 public:
  static Metrics& global();
  Counter& counter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge& gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram& histogram(const std::string& name, const std::string& help, std::vector<double> bounds,
                       const Labels& labels = {});
  std::string prometheus_text() const;

 private:
  enum class Kind { kCounter, kGauge, kHistogram };
  struct Series {
    std::unique_ptr<Counter> counter;
    std::unique_ptr<Gauge> gauge;
    std::unique_ptr<Histogram> histogram;
  };
  struct Family {
    Kind kind;
    std::string help;
    std::map<Labels, Series> series;
  };
  Series& find(Kind kind, const std::string& name, const std::string& help, const Labels& labels);
  mutable std::mutex mutex_;
  std::map<std::string, Family> families_;
};

}  // namespace flywheel
