// The main text of a web page: without navigation, advertisement, comments and controls, with its structure
// kept as headings (#), lists (-, 1.), code (```), quotes (>) and tables (|).
//
// No list of sites: the page is cut into blocks (paragraphs, items, rows); each is scored by its length, the
// share of its characters inside links, and whether it reads like sentences; tags and the words of classes
// and ids help. The container is where the score gathers; inside it, what still looks like furniture is
// dropped. The ideas are those of boilerplate detection by shallow text features (Kohlschütter et al., WSDM
// 2010), jusText (Pomikálek 2011), Readability and Trafilatura (Barbaresi, ACL 2021).
//
// Threads: any. Errors: kInvalid for a page beyond HtmlLimits. A page without main text gives an empty text.
//
//   ASSIGN_OR_RETURN(Extracted page, extract_main(utf8_html, {}));
//   page.text, page.title, page.language
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "data/html_guard.h"

namespace flywheel::data {

struct ExtractConfig {
  bool main_content = true;  // false: all text of the page
  bool tables = true;        // keep rows of data tables
  int max_depth = 256;       // tags that nest deeper are left out, their text stays
  int max_attributes = 128;  // a tag with more loses them
  template <typename V>
  void fields(V& v) {
    v("main_content", main_content), v("tables", tables), v("max_depth", max_depth);
    v("max_attributes", max_attributes);
  }
};

struct Extracted {
  std::string text, title, language;    // language: as declared ("en-us"), lower case; "" if not
  int64_t blocks = 0, blocks_kept = 0;  // of the whole page
  int64_t tags_cut = 0;                 // beyond max_depth or max_attributes
};

Result<Extracted> extract_main(std::string_view utf8_html, const ExtractConfig& config = {});

}  // namespace flywheel::data
