// What Store and Run share: the database, the folder of blobs, and who we are. Not for other rooms.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "store/artifact.h"
#include "store/blobs.h"
#include "store/database.h"

namespace flywheel::store {

class StoreState {
 public:
  std::unique_ptr<Database> db;
  std::string home;
  BlobFolder blobs;
  std::string owner, host;
};

// A writer that says nothing for this long is taken for dead by a collection.
constexpr int64_t kReservationMs = 10 * 60'000;

// The functions below run inside a transaction.
Result<Artifact> find_artifact(Database& db, const std::string& ref);
Result<Artifact> load_artifact(Database& db, int64_t id);
// The next number of a counter: 1, 2, 3, ...
Result<int64_t> next_number(Database& db, const std::string& scope, const std::string& name);
Result<void> move_alias(Database& db, const Artifact& to, const std::string& alias, const std::string& owner);

// kInvalid with the rule that was broken.
Result<void> check_word(const std::string& what, const std::string& word);  // kinds, aliases
Result<void> check_path(const std::string& path);

// SHA-256 over "sha256 size path\n" of the files in order of path.
std::string digest_of(const std::vector<ArtifactFile>& files);

// views.cc: the folder <home>/views/<digest> with the artifact's files as hard links to their blobs.
Result<std::string> view_of(const StoreState& state, const Artifact& artifact);

// What a user does about a damaged or missing file of an artifact.
std::string mend_advice(const std::string& ref);

std::string json_text(const Json& json);  // invalid UTF-8 is replaced, not thrown

}  // namespace flywheel::store
