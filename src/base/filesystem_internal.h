// How an address becomes one of Arrow's file systems, and how its errors become ours. Used by filesystem.cc.
#pragma once

#include <arrow/filesystem/filesystem.h>

#include <memory>
#include <string>
#include <vector>

#include "base/filesystem.h"

namespace flywheel {

struct RemoteFileSystem {
  std::shared_ptr<arrow::fs::FileSystem> fs;
  std::string root;
  std::string server;                // for messages: "127.0.0.1:9000" or ""
  std::vector<std::string> secrets;  // never shown
};

// s3, gs or hdfs. Bounded retries, endpoints from the environment.
Result<RemoteFileSystem> open_remote(const std::string& uri, const FileSystemOptions& options);

// `where` names the file or address. What the library said, its kind, and what the user can do about it.
Error from_arrow(const arrow::Status& status, const std::string& where, const RemoteFileSystem& remote);

}  // namespace flywheel
