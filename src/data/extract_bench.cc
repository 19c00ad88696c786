// data_extract_bench FOLDER OUT.json: the main text of every page (*.html, *.html.gz) of a folder, as {file:
// text}, and how fast it was on one thread. bench/extract compares the texts with a peer's.
#include <cstdio>

#include "base/deadline.h"
#include "base/json.h"
#include "data/charset.h"
#include "data/extract.h"
#include "data/input.h"

int main(int argc, char** argv) {
  using namespace flywheel;
  using namespace flywheel::data;
  if (argc != 3) {
    std::fprintf(stderr, "usage: data_extract_bench FOLDER OUT.json\n");
    return 2;
  }
  try {
    const std::string folder = argv[1];
    OrderedJson texts = OrderedJson::object();
    double seconds = 0, bytes = 0;
    for (const InputFile& file : list_inputs({folder}, {.formats = {"html"}}).files) {
      const LoadedFile page = load_input(file, {}).value_or_throw(file.path);
      const Stopwatch clock;
      const Result<Extracted> extracted =
          extract_main(decode_text(page.bytes(), DeclaredCharset::kHtml).utf8);
      seconds += clock.seconds();
      bytes += static_cast<double>(page.bytes().size());
      texts[file.path.substr(file.path.rfind('/') + 1)] = extracted.ok() ? extracted->text : "";
    }
    write_file(argv[2], texts.dump()).value_or_throw(argv[2]);
    std::printf("%.3f %.1f\n", seconds, bytes / 1e6 / seconds);
    return 0;
  } catch (const UserError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
