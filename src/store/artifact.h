// What the store names: an immutable set of files with a kind, a name and a version.
//
// An artifact is written once and never changed. Its files lie in the store by the SHA-256 of their content,
// so equal files of different versions are kept once. `digest` is the SHA-256 over the sorted list of
// (sha256, size, path): two artifacts with the same digest hold the same bytes under the same names.
//
// Ownership: plain values, a snapshot of what the store said.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace flywheel::store {

struct ArtifactFile {
  std::string path;    // its name inside the artifact, '/' between folders
  std::string sha256;  // 64 lower-case hex digits; also its name in the store
  uint64_t size_bytes = 0;
};

struct Artifact {
  int64_t id = 0;        // for the store's own use; people and configs say ref()
  std::string kind;      // dataset, tokenizer, checkpoint, model, index, source, ...
  std::string name;      // "tiny", "HuggingFaceTB/SmolLM2-135M"
  int64_t version = 0;   // 1, 2, 3, ... per name
  bool is_file = false;  // made from one file: Store::path_of gives that file, else a folder
  std::string digest;
  uint64_t size_bytes = 0;
  std::vector<ArtifactFile> files;   // sorted by path; empty for a source and for a removed artifact
  std::vector<std::string> aliases;  // that point at this version now, "latest" included
  std::string owner;
  std::string run;  // id of the run that made it, or ""
  Json metadata = Json::object();
  int64_t created_ms = 0;  // since 1970
  int64_t removed_ms = 0;  // 0: its content is there

  std::string ref() const { return name + ":" + std::to_string(version); }
};

// Whether an artifact or a run may be called so: kInvalid with the rule that was broken.
Result<void> check_name(const std::string& name);

// How a file comes into the store.
enum class Ingest {
  kCopy,  // read once, hashed on the way, a block at a time (a reflink where the file system has them)
  kLink,  // hard link, hashed in place: no second copy; the source becomes read-only and must not be changed
  kMove,  // as kLink, and the source's name is removed once the artifact is committed
};

// What a put does when the name's latest version has the same files already.
enum class IfSame { kNewVersion, kReturnIt };

// What put_artifact() is asked to store. Give `path`, or `files` and `contents`.
struct NewArtifact {
  std::string kind;
  std::string name;
  std::string path = {};                             // a file, or a folder with everything below it
  std::map<std::string, std::string> files = {};     // name inside the artifact -> local file
  std::map<std::string, std::string> contents = {};  // name inside the artifact -> bytes (small files)
  std::vector<std::string> inputs = {};              // artifacts that it was made from, "name:version"
  std::string run = {};                              // the run that makes it
  Json metadata = Json::object();
  std::vector<std::string> aliases = {};  // to move to this version in the same commit
  Ingest ingest = Ingest::kCopy;
  IfSame if_same = IfSame::kNewVersion;
  // When not empty: a second put with the same text returns the first one's artifact and stores nothing. A
  // controller that is started again after a crash says "<run>/<step>" and never makes a version twice.
  // Removing the artifact forgets the text.
  std::string once = {};
};

// Where an artifact came from or went to; see Store::lineage.
struct LineageNode {
  enum class What { kArtifact, kRun };
  What what = What::kArtifact;
  std::string id;         // "tiny:3" or "tiny-7"
  std::string kind;       // the artifact's or the run's
  std::string detail;     // size or place of an artifact, status of a run
  bool repeated = false;  // drawn before: its children are there
  std::vector<LineageNode> children;
};

// The tree with box-drawing characters, one node a line.
std::string draw_lineage(const LineageNode& root);
Json lineage_to_json(const LineageNode& root);

}  // namespace flywheel::store
