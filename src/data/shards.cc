#include "data/shards.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/hash.h"
#include "base/json.h"
#include "base/philox.h"
#include "data/shards_internal.h"

namespace flywheel::data {

using namespace shard_format;
static_assert(std::endian::native == std::endian::little, "shards are read in place, little-endian");

namespace {

Result<ShardManifest> read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifestName;
  if (!path_exists(path)) {
    return make_error(ErrorCode::kNotFound,
                      "{}: no manifest.json, so no sealed dataset; run `flywheel data prepare` to the end",
                      folder);
  }
  ASSIGN_OR_RETURN(const std::string text, read_file(path));
  Result<OrderedJson> parsed = parse_ordered_json(text, 16);
  const auto corrupt = [&](const std::string& what) {
    return make_error(ErrorCode::kCorrupt, "{}: {}; run its `flywheel data prepare` again", path, what);
  };
  if (!parsed.ok()) return corrupt(parsed.error().message);
  OrderedJson json = std::move(parsed).value();
  try {
    const uint32_t crc = json.at("crc32c").get<uint32_t>();
    json.erase("crc32c");
    if (crc32c(json.dump()) != crc) return corrupt("the checksum does not match");
    if (const int version = json.at("version").get<int>(); version != static_cast<int>(kVersion)) {
      return corrupt(
          fmt::format("version {} of the format is not known (this program reads {})", version, kVersion));
    }
    ShardManifest manifest;
    manifest.vocab_size = json.at("vocab_size").get<int64_t>();
    manifest.token_bytes = json.at("token_bytes").get<int>();
    manifest.tokens = json.at("tokens").get<int64_t>();
    manifest.documents = json.at("documents").get<int64_t>();
    manifest.tokenizer_sha256 = json.at("tokenizer_sha256").get<std::string>();
    for (const auto& shard : json.at("shards")) {
      manifest.shards.push_back({shard.at("file").get<std::string>(), shard.at("tokens").get<int64_t>(),
                                 shard.at("documents").get<int64_t>(),
                                 shard.at("header_crc").get<uint32_t>()});
    }
    return manifest;
  } catch (const OrderedJson::exception& error) {
    return corrupt(error.what());
  }
}

}  // namespace

Result<TokenShards> TokenShards::open(const std::string& folder) {
  TokenShards set;
  ASSIGN_OR_RETURN(set.manifest_, read_manifest(folder));
  for (const ShardManifest::Shard& entry : set.manifest_.shards)
    RETURN_IF_ERROR(set.map_shard(folder, entry));
  const int64_t mapped = set.shards_.empty() ? 0 : set.shards_.back().first_token + set.shards_.back().tokens;
  if (mapped != set.manifest_.tokens) {
    return make_error(ErrorCode::kCorrupt, "{}: the manifest names {} tokens, its shards hold {}", folder,
                      set.manifest_.tokens, mapped);
  }
  return set;
}

Result<void> TokenShards::map_shard(const std::string& folder, const ShardManifest::Shard& entry) {
  Shard shard;
  ASSIGN_OR_RETURN(shard.path, path_within(folder, entry.file));
  const auto corrupt = [&](const std::string& what) {
    return make_error(ErrorCode::kCorrupt, "{}: {}; run its `flywheel data prepare` again", shard.path, what);
  };
  Result<MappedFile> map = MappedFile::open(shard.path);
  if (!map.ok()) return map.error();
  shard.map = std::move(map).value();
  const std::string_view bytes = shard.map.bytes();
  Header header{};
  if (bytes.size() < kTokensOffset)
    return corrupt(fmt::format("{} bytes are too few for a shard", bytes.size()));
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return corrupt("not a token shard");
  if (header.version != kVersion) return corrupt(fmt::format("version {} is not known", header.version));
  if (crc32c(bytes.substr(0, offsetof(Header, header_crc))) != header.header_crc ||
      header.header_crc != entry.header_crc) {
    return corrupt("the header's checksum does not match");
  }
  if (header.file_bytes != bytes.size()) {
    return corrupt(fmt::format("{} bytes, its header says {}: cut short", bytes.size(), header.file_bytes));
  }
  const uint64_t blocks =
      (header.tokens + header.block_tokens - 1) / std::max<uint64_t>(header.block_tokens, 1);
  if (header.block_tokens == 0 || header.token_bytes != static_cast<uint32_t>(manifest_.token_bytes) ||
      header.tokens_offset + header.tokens * header.token_bytes > header.documents_offset ||
      header.documents_offset % 8 != 0 ||
      header.documents_offset + (header.documents + 1) * 8 != header.checksums_offset ||
      header.checksums_offset + blocks * 4 != header.file_bytes) {
    return corrupt("the header contradicts itself");
  }
  if (crc32c(bytes.substr(header.documents_offset)) != header.tables_crc) {
    return corrupt("the document table's checksum does not match");
  }
  shard.tokens = static_cast<int64_t>(header.tokens);
  shard.documents = static_cast<int64_t>(header.documents);
  shard.block_tokens = static_cast<int64_t>(header.block_tokens);
  shard.ids = shard.map.data() + header.tokens_offset;
  shard.document_starts = reinterpret_cast<const uint64_t*>(shard.map.data() + header.documents_offset);
  shard.block_crcs = reinterpret_cast<const uint32_t*>(shard.map.data() + header.checksums_offset);
  shard.checked = std::make_unique<std::atomic<uint8_t>[]>(blocks);
  if (!shards_.empty()) {
    shard.first_token = shards_.back().first_token + shards_.back().tokens;
    shard.first_document = shards_.back().first_document + shards_.back().documents;
  }
  shards_.push_back(std::move(shard));
  return {};
}

Result<void> TokenShards::check_block(const Shard& shard, int64_t block) const {
  std::atomic<uint8_t>& checked = shard.checked[static_cast<size_t>(block)];
  if (checked.load(std::memory_order_relaxed) != 0) return {};
  const int64_t first = block * shard.block_tokens;
  const int64_t count = std::min(shard.block_tokens, shard.tokens - first);
  const int64_t width = manifest_.token_bytes;
  const std::string_view bytes(reinterpret_cast<const char*>(shard.ids + first * width),
                               static_cast<size_t>(count * width));
  if (crc32c(bytes) != shard.block_crcs[block]) {
    return make_error(ErrorCode::kCorrupt,
                      "{}: block {} (bytes {}..{}) does not match its checksum; run its "
                      "`flywheel data prepare` again",
                      shard.path, block, kTokensOffset + static_cast<uint64_t>(first * width),
                      kTokensOffset + static_cast<uint64_t>((first + count) * width));
  }
  checked.store(1, std::memory_order_relaxed);
  return {};
}

const TokenShards::Shard& TokenShards::shard_of(int64_t token) const {
  auto after = std::upper_bound(shards_.begin(), shards_.end(), token,
                                [](int64_t t, const Shard& shard) { return t < shard.first_token; });
  return *std::prev(after);
}

Result<void> TokenShards::read(int64_t first, std::span<int32_t> out) const {
  auto left = static_cast<int64_t>(out.size());
  if (first < 0 || first + left > num_tokens()) {
    return make_error(ErrorCode::kInvalid, "tokens {}..{} of a set of {}", first, first + left, num_tokens());
  }
  int32_t* to = out.data();
  while (left > 0) {
    const Shard& shard = shard_of(first);
    const int64_t local = first - shard.first_token, count = std::min(left, shard.tokens - local);
    for (int64_t block = local / shard.block_tokens; block * shard.block_tokens < local + count; ++block) {
      RETURN_IF_ERROR(check_block(shard, block));
    }
    if (manifest_.token_bytes == 2) {
      const uint8_t* from = shard.ids + local * 2;
      for (int64_t i = 0; i < count; ++i) {
        uint16_t id;
        std::memcpy(&id, from + i * 2, 2);
        to[i] = id;
      }
    } else {
      std::memcpy(to, shard.ids + local * 4, static_cast<size_t>(count) * 4);
    }
    first += count, left -= count, to += count;
  }
  return {};
}

Result<void> TokenShards::read_documents(int64_t first, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (first < 0 || first + count > num_tokens()) {
    return make_error(ErrorCode::kInvalid, "tokens {}..{} of a set of {}", first, first + count,
                      num_tokens());
  }
  for (int64_t i = 0; i < count;) {
    const Shard& shard = shard_of(first + i);
    const uint64_t* starts = shard.document_starts;
    auto local = static_cast<uint64_t>(first + i - shard.first_token);
    int64_t document = std::upper_bound(starts, starts + shard.documents + 1, local) - starts - 1;
    for (; i < count && document < shard.documents; ++document) {
      const uint64_t end = starts[document + 1];
      for (; i < count && local < end; ++i, ++local) {
        out[static_cast<size_t>(i)] = static_cast<int32_t>(shard.first_document + document);
      }
    }
  }
  return {};
}

Result<void> TokenShards::verify() const {
  for (const Shard& shard : shards_) {
    for (int64_t block = 0; block * shard.block_tokens < shard.tokens; ++block) {
      RETURN_IF_ERROR(check_block(shard, block));
    }
  }
  return {};
}

Sampler::Sampler(const TokenShards& shards, SamplerConfig config) : shards_(&shards), config_(config) {
  if (config.batch <= 0 || config.length <= 0)
    throw UserError("sampler", "batch and length must be positive");
  samples_ = shards.num_samples(config.length);
  if (samples_ == 0) {
    throw UserError("sampler",
                    fmt::format("the dataset has {} tokens, fewer than one sequence of {} + 1",
                                shards.num_tokens(), config.length),
                    "use a shorter sequence or more data");
  }
}

int64_t Sampler::sample_at(int64_t index) const {
  const auto n = static_cast<uint64_t>(samples_), g = static_cast<uint64_t>(index);
  return static_cast<int64_t>(Permutation(config_.seed, g / n, n)(g % n));
}

Result<void> Sampler::read_sample(int64_t sample, std::span<int32_t> tokens) const {
  if (static_cast<int64_t>(tokens.size()) != config_.length + 1) {
    return make_error(ErrorCode::kInvalid, "a sample has {} tokens, not {}", config_.length + 1,
                      tokens.size());
  }
  return shards_->read(sample * config_.length, tokens);
}

Result<Batch> Sampler::batch(int64_t step, int64_t rank, int64_t world) const {
  if (step < 0 || world <= 0 || rank < 0 || rank >= world) {
    return make_error(ErrorCode::kInvalid, "batch of step {}, rank {} of {}", step, rank, world);
  }
  const int64_t begin = config_.batch * rank / world, end = config_.batch * (rank + 1) / world;
  Batch batch;
  batch.sequences = end - begin;
  batch.length = config_.length;
  const auto row = static_cast<size_t>(config_.length + 1);
  batch.tokens.resize(static_cast<size_t>(batch.sequences) * row);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t sample = sample_at(step * config_.batch + i);
    const size_t at = static_cast<size_t>(i - begin) * row;
    RETURN_IF_ERROR(shards_->read(sample * config_.length, std::span(batch.tokens).subspan(at, row)));
    batch.samples.push_back(sample);
  }
  return batch;
}

}  // namespace flywheel::data
