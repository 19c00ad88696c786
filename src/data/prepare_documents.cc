// The stages on documents: extract, clean, dedup.
#include <map>
#include <new>

#include "base/config.h"
#include "base/memory.h"
#include "data/document.h"
#include "data/parquet_internal.h"
#include "data/reader.h"
#include "data/stage_internal.h"

namespace flywheel::data {
namespace {

constexpr int64_t kWindowBytes = int64_t{128} << 20;
constexpr size_t kChunkBytes = size_t{1} << 20;

Result<void> append_line(AtomicFile& file, std::string line) {
  line += '\n';
  return file.write(line);
}

// What one piece of a stage gives.
struct Piece {
  std::string kept;  // JSON lines
  std::vector<Dropped> dropped;
  std::vector<Quarantined> quarantined;
  int64_t documents_in = 0, documents_out = 0, bytes_in = 0, bytes_out = 0;
  std::map<std::string, int64_t> counts;
  void keep(const Document& document) {
    kept += to_json_line(document);
    kept += '\n';
    ++documents_out;
    bytes_out += static_cast<int64_t>(document.text.size());
  }
};

// The three files of a stage.
struct Outputs {
  AtomicFile kept, dropped, quarantined;

  static Result<Outputs> create(const StageContext& context, const std::string& stage) {
    Outputs out;
    ASSIGN_OR_RETURN(out.kept, AtomicFile::create(context.path("stages/" + stage + ".jsonl")));
    ASSIGN_OR_RETURN(out.dropped, AtomicFile::create(context.path("stages/" + stage + ".dropped.jsonl")));
    ASSIGN_OR_RETURN(out.quarantined,
                     AtomicFile::create(context.path("stages/" + stage + ".quarantined.jsonl")));
    return out;
  }
  Result<void> write(const Piece& piece, StageReport& report) {
    report.documents_in += piece.documents_in, report.documents_out += piece.documents_out;
    report.bytes_in += piece.bytes_in, report.bytes_out += piece.bytes_out;
    report.quarantined += static_cast<int64_t>(piece.quarantined.size());
    for (const auto& [what, n] : piece.counts) {
      if (n != 0) report.counts[what] += n;
    }
    for (const Dropped& one : piece.dropped) {
      report.drop(one.rule, one.chars);
      RETURN_IF_ERROR(append_line(dropped, to_json_line(one)));
    }
    for (const Quarantined& one : piece.quarantined)
      RETURN_IF_ERROR(append_line(quarantined, to_json_line(one)));
    return kept.write(piece.kept);
  }
  Result<void> commit() {
    RETURN_IF_ERROR(kept.commit());
    RETURN_IF_ERROR(dropped.commit());
    return quarantined.commit();
  }
};

Stage make_stage(const std::string& name, const std::string& key) {
  const std::string at = "stages/" + name;
  return {name, key, {at + ".jsonl", at + ".dropped.jsonl", at + ".quarantined.jsonl"}};
}

// Calls use(document) for each line of a chunk that an earlier stage wrote.
template <typename Use>
void for_each_document(std::string_view chunk, Use&& use) {
  while (!chunk.empty()) {
    const size_t end = std::min(chunk.find('\n'), chunk.size());
    Result<Document> document = document_from_json(chunk.substr(0, end));
    if (!document.ok()) {
      throw UserError("stages", "a line that an earlier stage wrote is broken: " + document.error().message,
                      "remove the folder `stages` in the output and run again");
    }
    use(std::move(document).value());
    chunk.remove_prefix(std::min(end + 1, chunk.size()));
  }
}

Dropped dropped_by(const Document& document, const std::string& stage, const QualityVerdict& verdict) {
  return {document.id,
          document.file,
          document.place,
          stage,
          verdict.rule,
          verdict.value,
          verdict.threshold,
          static_cast<int64_t>(document.text.size()),
          ""};
}

Piece clean_piece(std::string_view chunk, const DataConfig& config) {
  Piece piece;
  for_each_document(chunk, [&](Document document) {
    ++piece.documents_in;
    piece.bytes_in += static_cast<int64_t>(document.text.size());
    UnicodeCounts unicode;
    document.text = clean_unicode(document.text, config.unicode, unicode);
    document.title = clean_unicode(document.title, config.unicode, unicode);
    piece.counts["mojibake repaired"] += unicode.mojibake;
    piece.counts["control characters removed"] += unicode.controls;
    std::map<std::string, int64_t> removed;
    document.text = filter_lines(document.text, config.quality.c4, removed);
    for (const auto& [rule, n] : removed) piece.counts["lines removed by " + rule] += n;
    const QualityVerdict verdict = judge_quality(document.text, document.language, config.quality);
    if (verdict.keep) {
      piece.keep(document);
    } else {
      piece.dropped.push_back(dropped_by(document, "clean", verdict));
    }
  });
  return piece;
}

// Where a unit begins, as quarantined.jsonl says places.
std::string unit_place(const ReadUnit& unit) {
  if (unit.row_group >= 0) return fmt::format("row group {}", unit.row_group);
  return unit.end > 0 ? fmt::format("line {}", unit.first_line) : "";
}

// Documents do not depend on what was not read; the report does.
std::string with_not_read(const std::string& key, const InputList& inputs) {
  if (inputs.not_read.empty()) return key;
  std::vector<std::string> parts{key};
  for (const NotRead& one : inputs.not_read) parts.push_back(one.path), parts.push_back(one.reason);
  return stage_key(parts);
}

}  // namespace

Result<void> extract_stage(StageContext& context, const InputList& inputs, const std::string& key) {
  const DataConfig& config = context.request.config;
  const Stage stage = make_stage("extract", with_not_read(key, inputs));
  return context.run(stage, [&](StageReport& report) -> Result<void> {
    ASSIGN_OR_RETURN(Outputs outputs, Outputs::create(context, "extract"));
    Piece not_read;
    for (const NotRead& one : inputs.not_read) not_read.quarantined.push_back({one.path, "", one.reason});
    RETURN_IF_ERROR(outputs.write(not_read, report));
    InputConfig bounded = config.input;
    bound_by_memory(bounded, context.pool.size(), available_memory_bytes());
    const std::vector<ReadUnit> units = plan_units(inputs, bounded);
    const auto n = static_cast<int64_t>(units.size());
    const auto cost = [&](int64_t i) {
      const ReadUnit& unit = units[static_cast<size_t>(i)];
      return static_cast<int64_t>(unit.end > 0 ? unit.end - unit.begin : inputs.files[unit.file].size_bytes);
    };
    const auto read = [&](const ReadUnit& to_read) {
      UnitResult unit = read_unit(inputs, to_read, bounded, config.extract);
      Piece piece;
      for (const Document& document : unit.documents) piece.keep(document);
      piece.documents_in = static_cast<int64_t>(unit.documents.size() + unit.dropped.size());
      piece.bytes_in = unit.bytes_in;
      piece.dropped = std::move(unit.dropped), piece.quarantined = std::move(unit.quarantined);
      piece.counts["texts in another encoding than UTF-8"] = unit.decoded;
      piece.counts["characters that could not be decoded"] = unit.replacements;
      return piece;
    };
    // One file of a dataset must not end it, however much it unpacks to.
    const auto produce = [&](int64_t i) {
      const ReadUnit& unit = units[static_cast<size_t>(i)];
      try {
        return read(unit);
      } catch (const std::bad_alloc&) {
        Piece piece;
        piece.quarantined.push_back({inputs.files[unit.file].path, unit_place(unit), kTooLittleMemory});
        return piece;
      }
    };
    RETURN_IF_ERROR(for_each_ordered(n, context.pool, kWindowBytes / 8, cost, produce,
                                     [&](int64_t i, const Piece& piece) -> Result<void> {
                                       context.progress("extract", i + 1, n);
                                       return outputs.write(piece, report);
                                     }));
    return outputs.commit();
  });
}

Result<void> clean_stage(StageContext& context, const std::string& key) {
  return context.run(make_stage("clean", key), [&](StageReport& report) -> Result<void> {
    ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(context.path("stages/extract.jsonl")));
    ASSIGN_OR_RETURN(Outputs outputs, Outputs::create(context, "clean"));
    const std::vector<std::string_view> chunks = line_chunks(file.bytes(), kChunkBytes / 4);
    const auto n = static_cast<int64_t>(chunks.size());
    const auto cost = [&](int64_t i) { return static_cast<int64_t>(chunks[static_cast<size_t>(i)].size()); };
    RETURN_IF_ERROR(for_each_ordered(
        n, context.pool, kWindowBytes, cost,
        [&](int64_t i) { return clean_piece(chunks[static_cast<size_t>(i)], context.request.config); },
        [&](int64_t i, const Piece& piece) -> Result<void> {
          context.progress("clean", i + 1, n);
          return outputs.write(piece, report);
        }));
    return outputs.commit();
  });
}

Result<void> dedup_stage(StageContext& context, const std::string& key) {
  const DedupConfig& config = context.request.config.dedup;
  Stage stage{"dedup", key, {"documents.jsonl", "stages/dedup.dropped.jsonl", "clusters.jsonl"}};
  if (context.request.config.parquet) stage.outputs.emplace_back("documents.parquet");
  return context.run(stage, [&](StageReport& report) -> Result<void> {
    ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(context.path("stages/clean.jsonl")));
    const std::vector<std::string_view> chunks = line_chunks(file.bytes(), kChunkBytes / 4);
    const auto n = static_cast<int64_t>(chunks.size());
    const auto cost = [&](int64_t i) { return static_cast<int64_t>(chunks[static_cast<size_t>(i)].size()); };
    struct Named {
      std::string id, file, place;
      int64_t chars = 0;
      std::string_view line;
    };
    struct Sketched {
      std::vector<Named> names;
      std::vector<Sketch> sketches;
    };
    std::vector<Named> names;
    std::vector<Sketch> sketches;
    RETURN_IF_ERROR(for_each_ordered(
        n, context.pool, kWindowBytes, cost,
        [&](int64_t i) {
          Sketched out;
          std::string_view rest = chunks[static_cast<size_t>(i)];
          for_each_document(rest, [&](Document document) {
            const size_t end = std::min(rest.find('\n'), rest.size() - 1) + 1;
            out.sketches.push_back(sketch_text(document.text, config));
            out.names.push_back({std::move(document.id), std::move(document.file), std::move(document.place),
                                 static_cast<int64_t>(document.text.size()), rest.substr(0, end)});
            rest.remove_prefix(end);
          });
          return out;
        },
        [&](int64_t i, Sketched out) -> Result<void> {
          context.progress("dedup", i + 1, n);
          std::move(out.names.begin(), out.names.end(), std::back_inserter(names));
          std::move(out.sketches.begin(), out.sketches.end(), std::back_inserter(sketches));
          return {};
        }));
    const DuplicateReport duplicates = find_duplicates(sketches, config, context.pool);
    ASSIGN_OR_RETURN(AtomicFile kept, AtomicFile::create(context.path("documents.jsonl")));
    ASSIGN_OR_RETURN(AtomicFile dropped, AtomicFile::create(context.path("stages/dedup.dropped.jsonl")));
    ASSIGN_OR_RETURN(AtomicFile clusters, AtomicFile::create(context.path("clusters.jsonl")));
    const auto called = [](const Named& named) {
      return named.place.empty() ? named.file : named.file + " " + named.place;
    };
    for (size_t i = 0; i < names.size(); ++i) {
      const Named& named = names[i];
      ++report.documents_in;
      report.bytes_in += named.chars;
      if (duplicates.duplicate_of[i] < 0) {
        ++report.documents_out;
        report.bytes_out += named.chars;
        RETURN_IF_ERROR(kept.write(named.line));
        continue;
      }
      const auto first = static_cast<size_t>(duplicates.duplicate_of[i]);
      const bool exact = duplicates.exact[i] != 0;
      // A member may have met the first only through others: its own similarity can be below the threshold.
      const double threshold = exact ? 1 : std::pow(1.0 / config.bands, 1.0 / config.rows);
      const Dropped one{named.id,
                        named.file,
                        named.place,
                        "dedup",
                        exact ? "dedup.exact" : "dedup.near",
                        estimate_similarity(sketches[i], sketches[first]),
                        threshold,
                        named.chars,
                        called(names[first])};
      report.drop(one.rule, one.chars);
      RETURN_IF_ERROR(append_line(dropped, to_json_line(one)));
    }
    for (const DuplicateReport::Cluster& cluster : duplicates.clusters) {
      const auto first = static_cast<size_t>(cluster.first);
      OrderedJson json = {{"kept", called(names[first])}, {"dropped", OrderedJson::array()}};
      for (const int64_t member : cluster.members) {
        const auto m = static_cast<size_t>(member);
        json["dropped"].push_back({{"document", called(names[m])},
                                   {"similarity", estimate_similarity(sketches[m], sketches[first])}});
      }
      RETURN_IF_ERROR(
          append_line(clusters, json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace)));
    }
    if (!duplicates.clusters.empty())
      report.counts["clusters"] = static_cast<int64_t>(duplicates.clusters.size());
    RETURN_IF_ERROR(kept.commit());
    RETURN_IF_ERROR(dropped.commit());
    RETURN_IF_ERROR(clusters.commit());
    if (context.request.config.parquet) {
      return write_parquet(context.path("documents.jsonl"), context.path("documents.parquet"));
    }
    return {};
  });
}

}  // namespace flywheel::data
