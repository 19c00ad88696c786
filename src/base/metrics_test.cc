#include "base/metrics.h"

#include <gtest/gtest.h>

namespace flywheel {
namespace {

TEST(Metrics, PrometheusText) {
  Metrics metrics;
  metrics.counter("a_total", "things\nmade", {{"model", "x\"y"}}).add(2);
  metrics.gauge("b", "now").set(1.5);
  Histogram& h = metrics.histogram("c_seconds", "time", {0.1, 1});
  h.observe(0.05), h.observe(0.5), h.observe(5);
  EXPECT_EQ(metrics.prometheus_text(),
            "# HELP a_total things\\nmade\n# TYPE a_total counter\na_total{model=\"x\\\"y\"} 2\n"
            "# HELP b now\n# TYPE b gauge\nb 1.5\n"
            "# HELP c_seconds time\n# TYPE c_seconds histogram\n"
            "c_seconds_bucket{le=\"0.1\"} 1\nc_seconds_bucket{le=\"1\"} 2\nc_seconds_bucket{le=\"+Inf\"} 3\n"
            "c_seconds_sum 5.55\nc_seconds_count 3\n");
  EXPECT_EQ(&metrics.gauge("b", "now"), &metrics.gauge("b", "now"));
}

TEST(Metrics, Quantile) {
  Histogram h({1, 2, 3, 4});
  for (int i = 0; i < 100; ++i) h.observe(i * 0.04);
  EXPECT_NEAR(h.quantile(0.5), 2.0, 0.1);
  EXPECT_NEAR(h.quantile(0.99), 3.96, 0.1);
}

}  // namespace
}  // namespace flywheel
