#include <arrow/api.h>
#include <arrow/io/interfaces.h>
#include <parquet/arrow/writer.h>

#include "base/file.h"
#include "data/document.h"
#include "data/parquet_internal.h"

namespace flywheel::data {
namespace {

constexpr int64_t kGroupBytes = int64_t{64} << 20;  // of text in a row group

constexpr const char* kColumns[] = {"id", "file", "place", "url", "title", "language", "text"};
constexpr size_t kColumnCount = std::size(kColumns);

Error failed(const std::string& path, const arrow::Status& status) {
  return make_error(ErrorCode::kIo, "{}: {}", path, status.message());
}

// Hands what Arrow writes to a file that appears whole.
class AtomicStream : public arrow::io::OutputStream {
 public:
  explicit AtomicStream(AtomicFile& file) : file_(file) { set_mode(arrow::io::FileMode::WRITE); }
  arrow::Status Close() override {
    closed_ = true;
    return arrow::Status::OK();
  }
  arrow::Result<int64_t> Tell() const override { return static_cast<int64_t>(file_.size_bytes()); }
  bool closed() const override { return closed_; }
  arrow::Status Write(const void* data, int64_t bytes) override {
    const Result<void> written = file_.write({static_cast<const char*>(data), static_cast<size_t>(bytes)});
    return written.ok() ? arrow::Status::OK() : arrow::Status::IOError(written.error().message);
  }

 private:
  AtomicFile& file_;
  bool closed_ = false;
};

struct Builders {
  arrow::LargeStringBuilder columns[kColumnCount];
  int64_t bytes = 0;

  arrow::Status append(const Document& document) {
    const std::string* const values[] = {&document.id,    &document.file,     &document.place, &document.url,
                                         &document.title, &document.language, &document.text};
    for (size_t i = 0; i < kColumnCount; ++i) ARROW_RETURN_NOT_OK(columns[i].Append(*values[i]));
    bytes += static_cast<int64_t>(document.text.size());
    return arrow::Status::OK();
  }
  arrow::Status flush(parquet::arrow::FileWriter& writer, const std::shared_ptr<arrow::Schema>& schema) {
    std::vector<std::shared_ptr<arrow::Array>> arrays(kColumnCount);
    for (size_t i = 0; i < kColumnCount; ++i) ARROW_RETURN_NOT_OK(columns[i].Finish(&arrays[i]));
    bytes = 0;
    const auto table = arrow::Table::Make(schema, arrays);
    return table->num_rows() == 0 ? arrow::Status::OK() : writer.WriteTable(*table, table->num_rows());
  }
};

}  // namespace

Result<void> write_parquet(const std::string& jsonl_path, const std::string& parquet_path) {
  ASSIGN_OR_RETURN(const MappedFile lines, MappedFile::open(jsonl_path));
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(parquet_path));
  try {
    arrow::FieldVector fields;
    for (const char* column : kColumns) fields.push_back(arrow::field(column, arrow::large_utf8()));
    const auto schema = arrow::schema(fields);
    const auto properties =
        parquet::WriterProperties::Builder().compression(arrow::Compression::ZSTD)->build();
    auto opened = parquet::arrow::FileWriter::Open(*schema, arrow::default_memory_pool(),
                                                   std::make_shared<AtomicStream>(file), properties);
    if (!opened.ok()) return failed(parquet_path, opened.status());
    parquet::arrow::FileWriter& writer = **opened;
    Builders builders;
    for (std::string_view rest = lines.bytes(); !rest.empty();) {
      const size_t end = std::min(rest.find('\n'), rest.size());
      ASSIGN_OR_RETURN(const Document document, document_from_json(rest.substr(0, end)));
      rest.remove_prefix(std::min(end + 1, rest.size()));
      if (auto status = builders.append(document); !status.ok()) return failed(parquet_path, status);
      if (builders.bytes < kGroupBytes) continue;
      if (auto status = builders.flush(writer, schema); !status.ok()) return failed(parquet_path, status);
    }
    if (auto status = builders.flush(writer, schema); !status.ok()) return failed(parquet_path, status);
    if (auto status = writer.Close(); !status.ok()) return failed(parquet_path, status);
  } catch (const std::exception& error) {  // Parquet throws where Arrow returns
    return make_error(ErrorCode::kIo, "{}: {}", parquet_path, error.what());
  }
  return file.commit();
}

}  // namespace flywheel::data
