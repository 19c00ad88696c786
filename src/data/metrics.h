// What data preparation counts.
#pragma once

#include "base/metrics.h"
#include "data/report.h"

namespace flywheel::data {

struct DataMetrics {
  DataMetrics();

  Counter& fetched_bytes;   // flywheel_data_fetched_bytes_total, from object stores
  Counter& quarantined;     // flywheel_data_quarantined_total
  Gauge& bytes_per_second;  // flywheel_data_bytes_per_second, of the stage that finished last

  // flywheel_data_documents_read_total and _kept_total by stage; flywheel_data_documents_dropped_total by
  // stage and rule; flywheel_data_read_bytes_total and flywheel_data_stage_seconds_total by stage.
  void count(const StageReport& stage);
};

DataMetrics& metrics();

}  // namespace flywheel::data
