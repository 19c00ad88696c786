// flywheel doctor in parts: each looks at one side of this machine and adds what it found to the report.
//
// A problem is what would not work as it should (exit 1); advice is what some verbs, tests or the demo lack.
// Both say how to mend it. Threads: one. Errors: none; what cannot be found out is said as such.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace flywheel::cli::doctor {

struct Finding {
  std::string what, mend;
};

struct Report {
  OrderedJson json = OrderedJson::object();                // for --json
  std::vector<std::pair<std::string, std::string>> lines;  // for people: label, text
  std::vector<Finding> problems, advice;
};

void look_at_processor(Report& report);  // cores, instruction sets
void look_at_memory(Report& report);     // size, measured bandwidth, shared memory
void look_at_gpus(Report& report);
void look_at_libraries(Report& report);  // what is linked, with versions
void look_at_tools(Report& report);      // nvcc, PostgreSQL's server, weights and documentation for the demo
void look_at_limits(Report& report);     // disk, open files, locked memory
void look_at_network(Report& report);    // loopback, the port of `flywheel serve`

}  // namespace flywheel::cli::doctor
