// The most that this machine has been seen to multiply and to read: what a run's speed is a share of, and
// what a plan for this machine counts with.
//
// A measurement may still give less than the machine can do: of memory beside other work, of all where a
// hypervisor gives the processor to others (kernels/peak.h). So each run measures before its workers start,
// and a plan before it is made, and the highest value of this processor, number of threads and type that any
// of this home measured is kept: docs/formats/peaks.md.
//
// Threads: any, and any number of processes: a value that is lost to another writer is measured again.
// Errors: none. A file that cannot be read counts as empty and is written anew; one that cannot be written is
// a warning in the log.
//
//   const double peak = recorded_peak_flops(env::home() + "/peaks.json", DType::kBF16, pool);
#pragma once

#include <string>

#include "base/thread_pool.h"
#include "kernels/dtype.h"

namespace flywheel::train {

// Measures (50 ms), and keeps the result if it is a new record. No path: what is measured now.
double recorded_peak_flops(const std::string& path, kernels::DType dtype, ThreadPool& pool);
// The same of the bytes a second that all threads read (100 to 200 ms).
double recorded_peak_read(const std::string& path, ThreadPool& pool);

// Without the measuring: the higher one of `measured` and what is recorded under `key`.
double record_peak(const std::string& path, const std::string& key, double measured);

}  // namespace flywheel::train
