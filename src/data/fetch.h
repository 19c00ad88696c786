// The raw files of a run by their content: every file's SHA-256, and remote ones fetched to this machine,
// once, so that what was hashed is what is read, and reading can map files and come back to them.
//
// A file that a server does not give is an error (the run can be started again); a local file that cannot be
// read has no hash and is quarantined by the reader. Threads: one call for a folder; the pool does the work.
// Errors: FileSystem's and kIo (disk full).
//
//   ASSIGN_OR_RETURN(std::vector<HashedInput> hashed, fetch_inputs(inputs, out + "/stages/fetched", pool));
#pragma once

#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "data/input.h"

namespace flywheel::data {

// One raw file by its content.
struct HashedInput {
  std::string file;
  uint64_t size_bytes = 0;
  std::string sha256;
};

// Fills InputFile::local of remote files with a copy below `folder`, which is made when it is needed and
// which the caller removes.
Result<std::vector<HashedInput>> fetch_inputs(InputList& inputs, const std::string& folder, ThreadPool& pool);

}  // namespace flywheel::data
