// export_gguf MODEL.gguf FOLDER: writes its vocabulary as tokenizer.json and tokenizer_config.json, for
// gguf.py.
#include <cstdio>

#include "base/file.h"
#include "model/tokenizer_gguf_json.h"

namespace {

flywheel::Result<void> export_gguf(const std::string& path, const std::string& folder) {
  ASSIGN_OR_RETURN(const flywheel::model::GgufFile file, flywheel::model::GgufFile::open(path));
  ASSIGN_OR_RETURN(const std::string json, flywheel::model::tokenizer_json_of(file));
  ASSIGN_OR_RETURN(const std::string config, flywheel::model::tokenizer_config_of(file));
  RETURN_IF_ERROR(flywheel::make_folders(folder));
  RETURN_IF_ERROR(flywheel::write_file(folder + "/tokenizer.json", json));
  return flywheel::write_file(folder + "/tokenizer_config.json", config);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const flywheel::Result<void> done = export_gguf(argv[1], argv[2]);
  if (!done.ok()) std::fprintf(stderr, "%s\n", done.error().message.c_str());
  return done.ok() ? 0 : 1;
}
