// Tokenizer::load: which reader a folder or file needs.
#include <zlib.h>

#include "base/file.h"
#include "model/gguf.h"
#include "model/tokenizer_internal.h"

namespace flywheel::model {
namespace {

std::string file_name(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

// A file may not unpack to more than this: rank files are a few megabytes.
constexpr size_t kMostBytes = size_t{256} << 20;

Result<std::string> gunzip(std::string_view packed) {
  z_stream stream{};
  CHECK(inflateInit2(&stream, 16 + MAX_WBITS) == Z_OK, "zlib");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  std::string text;
  std::vector<char> buffer(size_t{1} << 16);
  int status = Z_OK;
  while (status == Z_OK && text.size() < kMostBytes) {
    stream.next_out = reinterpret_cast<Bytef*>(buffer.data());
    stream.avail_out = static_cast<uInt>(buffer.size());
    status = inflate(&stream, Z_NO_FLUSH);
    text.append(buffer.data(), buffer.size() - stream.avail_out);
  }
  inflateEnd(&stream);
  if (status != Z_STREAM_END) return make_error(ErrorCode::kCorrupt, "the gzip data is damaged or too large");
  return text;
}

Error in_file(const std::string& path, const Error& error) {
  return {error.code, path + ": " + error.message};
}

Result<Tokenizer> load_folder(const std::string& folder) {
  std::string config;
  if (path_exists(folder + "/tokenizer_config.json")) {
    ASSIGN_OR_RETURN(config, read_file(folder + "/tokenizer_config.json"));
  }
  // The newer place of the chat template: a file of its own.
  if (path_exists(folder + "/chat_template.jinja")) {
    ASSIGN_OR_RETURN(const std::string chat, read_file(folder + "/chat_template.jinja"));
    Json settings = Json::object();
    if (!config.empty()) {
      ASSIGN_OR_RETURN(settings, parse_json(config));
    }
    if (settings.is_object()) settings["chat_template"] = chat;
    config = settings.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  if (path_exists(folder + "/tokenizer.json")) {
    ASSIGN_OR_RETURN(const std::string json, read_file(folder + "/tokenizer.json"));
    Result<Tokenizer> tokenizer = Tokenizer::from_json(json, config);
    if (!tokenizer.ok()) return in_file(folder, tokenizer.error());
    return tokenizer;
  }
  for (const char* name : {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}) {
    if (path_exists(folder + "/" + name)) return Tokenizer::load(folder + "/" + name);
  }
  return make_error(ErrorCode::kNotFound, "{}: no tokenizer.json or tokenizer.model in this folder", folder);
}

Result<Tokenizer> load_bytes(std::string_view bytes, const std::string& path) {
  std::string name = file_name(path);
  std::string unpacked;
  if (bytes.starts_with("\x1F\x8B")) {
    ASSIGN_OR_RETURN(unpacked, gunzip(bytes));
    bytes = unpacked;
    if (name.ends_with(".gz")) name.resize(name.size() - 3);
  }
  if (bytes.starts_with("GGUF") || name.ends_with(".gguf")) {
    ASSIGN_OR_RETURN(const GgufFile file, GgufFile::parse(bytes, path));
    return Tokenizer::from_gguf(file);
  }
  if (const size_t at = bytes.find_first_not_of(" \t\r\n");
      at != std::string_view::npos && bytes[at] == '{') {
    return Tokenizer::from_json(bytes);
  }
  if (name.ends_with(".tiktoken")) return Tokenizer::from_tiktoken(bytes, name.substr(0, name.size() - 9));
  Result<Tokenizer> tokenizer = Tokenizer::from_sentencepiece(bytes);
  if (tokenizer.ok() || name.ends_with(".model")) return tokenizer;
  return make_error(ErrorCode::kInvalid,
                    "no tokenizer: neither GGUF nor tokenizer.json, .tiktoken or a SentencePiece model ({})",
                    tokenizer.error().message);
}

}  // namespace

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  if (list_folder(path).ok()) return load_folder(path);
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  Result<Tokenizer> tokenizer = load_bytes(file.bytes(), path);
  if (!tokenizer.ok()) return in_file(path, tokenizer.error());
  return tokenizer;
}

}  // namespace flywheel::model
