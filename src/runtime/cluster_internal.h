// What the makers of clusters share.
#pragma once

#include <string>
#include <vector>

#include "base/process.h"
#include "base/result.h"
#include "runtime/launcher.h"

namespace flywheel::runtime {

constexpr int64_t kAskMs = 15'000;  // for a scheduler's program to answer

// What a scheduler's program says. kNotFound with what to install where it is not there, kUnavailable with
// its words where it fails, kDeadline.
Result<std::string> ask(const std::vector<std::string>& command, const std::string& install,
                        int64_t patience_ms = kAskMs);
// A word as a shell takes it.
std::string shell_quoted(const std::string& word);
std::vector<std::string> lines_of(const std::string& text);
// The nodes of this very job in what `squeue --format='%A %N'` says: of an array it lists all tasks. Empty:
// it has none.
std::string nodes_in(const std::string& list, const std::string& job);
// Hosts of one run reach each other: all are loopback (one machine, for tests) or none is. kInvalid, naming
// the host.
Result<void> check_loopback(const std::vector<Host>& hosts);
// This machine's address: the one that is wanted, if it is one of its own; else the one that faces `other`.
Result<std::string> own_address(const std::string& wanted, const std::string& other);

}  // namespace flywheel::runtime
