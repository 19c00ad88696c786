#include "data/fetch.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "base/hash.h"
#include "data/metrics.h"

namespace flywheel::data {
namespace {

Result<HashedInput> fetch(const InputFile& file, const std::string& to) {
  ASSIGN_OR_RETURN(AtomicFile copy, AtomicFile::create(to));
  Sha256 sha;
  uint64_t size = 0;
  RETURN_IF_ERROR(file.remote->read_pieces(file.remote_path, [&](std::string_view piece) {
    sha.update(piece);
    size += piece.size();
    metrics().fetched_bytes.add(static_cast<double>(piece.size()));
    return copy.write(piece);
  }));
  RETURN_IF_ERROR(copy.commit());
  return HashedInput{file.path, size, sha.hex()};
}

}  // namespace

Result<std::vector<HashedInput>> fetch_inputs(InputList& inputs, const std::string& folder,
                                              ThreadPool& pool) {
  const auto n = static_cast<int64_t>(inputs.files.size());
  std::vector<HashedInput> out(inputs.files.size());
  std::vector<std::optional<Error>> errors(inputs.files.size());
  for (size_t f = 0; f < inputs.files.size(); ++f) {
    if (inputs.files[f].remote != nullptr) inputs.files[f].local = fmt::format("{}/{:08}", folder, f);
  }
  RETURN_IF_ERROR(remove_all(folder));  // left by a run that was killed
  if (std::any_of(inputs.files.begin(), inputs.files.end(),
                  [](const InputFile& file) { return file.remote != nullptr; })) {
    RETURN_IF_ERROR(make_folders(folder));
  }
  std::atomic<bool> failed{false};
  pool.parallel_for(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && !failed; ++i) {
      const auto f = static_cast<size_t>(i);
      const InputFile& file = inputs.files[f];
      if (file.remote == nullptr) {
        out[f] = {file.path, file.size_bytes, sha256_file(file.path).value_or("")};
        continue;
      }
      Result<HashedInput> got = fetch(file, file.local);
      if (got.ok()) {
        out[f] = std::move(got).value();
      } else {
        errors[f] = got.error();
        failed = true;
      }
    }
  });
  for (const std::optional<Error>& error : errors) {
    if (error) return *error;
  }
  return out;
}

}  // namespace flywheel::data
