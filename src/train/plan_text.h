// A plan as tables for people, and as JSON.
#pragma once

#include <string>

#include "base/json.h"
#include "train/plan.h"

namespace flywheel::train {

// "llama of 15,200,000 parameters..." : what is planned, and for which machine.
std::string describe_job(const Job& job, const MachineSpec& machine);
// Rows for a table: a heading, then a row for each prediction.
std::vector<std::vector<std::string>> mesh_rows(const std::vector<Prediction>& predictions);
std::vector<std::vector<std::string>> memory_rows(const std::vector<Prediction>& predictions);
std::vector<std::vector<std::string>> traffic_rows(const std::vector<Prediction>& predictions);

Json to_json(const Prediction& prediction);
Json to_json(const Job& job, const MachineSpec& machine);

}  // namespace flywheel::train
