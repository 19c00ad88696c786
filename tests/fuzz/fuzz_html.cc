// Web pages: any bytes become valid UTF-8 text, or an error for a page beyond the limits.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "data/charset.h"
#include "data/extract.h"
#include "fuzzer.h"

namespace {

std::vector<std::string> seeds() {
  return {
      "<!doctype html><html lang=en><head><meta charset=utf-8><title>T &amp; t</title></head><body><nav><a "
      "href=/>Home</a></nav><article><h1>A heading</h1><p>Some sentences of text, long enough to be kept. "
      "And "
      "<b>more</b> of it.</p><ul><li>one<li>two</ul><pre>code</pre><table><tr><th>a<td>b</table></article>"
      "<script>if (a < b) {}</script><footer class=\"footer\">(c)</footer></body></html>",
      "<?xml version='1.0' encoding='shift_jis'?><svg><![CDATA[x]]></svg><template><p>\x82\xA0</template>",
      std::string("\xFF\xFE<\0p\0>\0\x42\x30", 10)};
}

void run(std::string_view input) {
  using namespace flywheel::data;
  const DecodedText page = decode_text(input, DeclaredCharset::kHtml);
  CHECK(valid_utf8_prefix(page.utf8) == page.utf8.size(), "decoded to no UTF-8");
  for (const bool main_content : {true, false}) {
    const auto result = extract_main(page.utf8, {.main_content = main_content});
    if (result.ok()) CHECK(valid_utf8_prefix(result->text) == result->text.size(), "extracted no UTF-8");
  }
}

const FuzzerRegistration registration("html", seeds, run);

}  // namespace
