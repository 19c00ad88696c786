#include "data/metrics.h"

namespace flywheel::data {

DataMetrics::DataMetrics()
    : fetched_bytes(Metrics::global().counter("flywheel_data_fetched_bytes_total",
                                              "Bytes of raw files fetched from object stores")),
      quarantined(Metrics::global().counter("flywheel_data_quarantined_total",
                                            "Files, lines and rows that could not be read")),
      bytes_per_second(Metrics::global().gauge("flywheel_data_bytes_per_second",
                                               "Bytes read a second by the stage that finished last")) {}

void DataMetrics::count(const StageReport& stage) {
  Metrics& all = Metrics::global();
  const Labels labels = {{"stage", stage.name}};
  all.counter("flywheel_data_documents_read_total", "Documents that a stage took in", labels)
      .add(static_cast<double>(stage.documents_in));
  all.counter("flywheel_data_documents_kept_total", "Documents that a stage handed on", labels)
      .add(static_cast<double>(stage.documents_out));
  for (const auto& [rule, dropped] : stage.dropped) {
    all.counter("flywheel_data_documents_dropped_total", "Documents that a rule refused",
                {{"stage", stage.name}, {"rule", rule}})
        .add(static_cast<double>(dropped.documents));
  }
  all.counter("flywheel_data_read_bytes_total", "Bytes that a stage read", labels)
      .add(static_cast<double>(stage.bytes_in));
  all.counter("flywheel_data_stage_seconds_total", "Time in a stage", labels).add(stage.seconds);
  quarantined.add(static_cast<double>(stage.quarantined));
  if (stage.seconds > 0) bytes_per_second.set(static_cast<double>(stage.bytes_in) / stage.seconds);
}

DataMetrics& metrics() {
  static DataMetrics metrics;
  return metrics;
}

}  // namespace flywheel::data
