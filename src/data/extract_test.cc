#include "data/extract.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/deadline.h"
#include "base/env.h"
#include "base/file.h"
#include "base/json.h"
#include "base/philox.h"
#include "base/slowness_for_tests.h"
#include "data/charset.h"
#include "data/html_tree.h"
#include "data/input.h"

namespace flywheel::data {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string extract(std::string_view html) {
  return extract_main(html).value().text;
}

constexpr const char* kPage = R"(<!doctype html><html lang="EN-gb"><head><title> A page
 of text </title><style>p{color:red}</style></head><body>
<nav><ul><li><a href=/>Home</a></li><li><a href=/b>Blog</a></li></ul></nav>
<div id="sidebar"><h3>Related</h3><p>Another article that you may want to read as well, some day soon.</p></div>
<main><h1>How wheels turn</h1>
<p>A flywheel keeps <b>energy</b> in its rotation, and gives it back when the engine pauses for a moment.</p>
<h2>Parts<a class="headerlink" href="#parts">&para;</a></h2>
<ul><li>The rim holds most of the mass, far from the axis.</li><li>The hub
  <ol><li>with a bearing inside,</li><li>and a shaft.</li></ol></li></ul>
<pre><code>for (i = 0;
     i &lt; n; ++i)</code></pre>
<table><tr><th>part</th><th>mass</th></tr><tr><td>rim</td><td>9 kg</td></tr></table>
<blockquote>It never stops on its own, as every engineer of the old school knows.</blockquote>
<h2>See also</h2>
<ul><li><a href=1>One</a></li><li><a href=2>Two</a></li></ul>
<script>track("me")</script></main>
<div class="comments"><p>First! This is a comment that somebody wrote below the article, at night.</p></div>
<footer>Copyright by nobody, all wheels reserved, in every country of the world.</footer></body></html>)";

TEST(Extract, KeepsTheTextWithItsStructureAndNothingElse) {
  const Extracted page = extract_main(kPage).value();
  EXPECT_EQ(page.title, "A page of text");
  EXPECT_EQ(page.language, "en-gb");
  EXPECT_EQ(page.text, R"(# How wheels turn

A flywheel keeps energy in its rotation, and gives it back when the engine pauses for a moment.

## Parts

- The rim holds most of the mass, far from the axis.
- The hub
  1. with a bearing inside,
  2. and a shaft.

```
for (i = 0;
     i < n; ++i)
```

| part | mass |
| rim | 9 kg |

> It never stops on its own, as every engineer of the old school knows.)");
  EXPECT_THAT(extract_main(kPage, {.main_content = false})->text, HasSubstr("Copyright by nobody"));
  EXPECT_THAT(extract_main(kPage, {.tables = false})->text, Not(HasSubstr("9 kg")));
}

TEST(Extract, ATargetThatIsNotClosedIsNoLink) {
  const std::string text = extract(
      "<body><a id='top'/><p>This paragraph stands behind an anchor that was written as if it were "
      "closed.</p>"
      "<p>And so does this one, which is why neither of them is a link to anywhere.</p></body>");
  EXPECT_THAT(text, HasSubstr("behind an anchor"));
  EXPECT_THAT(text, HasSubstr("neither of them"));
}

TEST(Extract, EmptyAndStrangePages) {
  EXPECT_EQ(extract(""), "");
  EXPECT_EQ(extract("<"), "");
  EXPECT_EQ(extract("<html><body></body></html>"), "");
  EXPECT_EQ(extract("<frameset><frame src=a></frameset>"), "");
  EXPECT_EQ(extract("<script>only()</script>"), "");
  EXPECT_THAT(extract("plain words without any markup, which are a page as well, as far as HTML goes."),
              HasSubstr("without any markup"));
}

// Pages made to cost an HTML parser the square of their size. Each must end soon, and its text must be found.
TEST(Extract, HostilePagesCostTheirSize) {
  const std::string text =
      "<p>This is the text that the page has after all, in one long and honest sentence.</p>";
  std::vector<std::pair<std::string, std::string>> pages;
  for (const char* tag : {"div",  "b",      "span", "font",   "table", "ul",      "li", "p",
                          "a",    "svg",    "math", "object", "x-y",   "button",  "h1", "blockquote",
                          "form", "select", "td",   "ruby",   "nobr",  "template"}) {
    std::string page;
    for (int i = 0; i < 100000; ++i) page += std::string("<") + tag + ">";
    pages.emplace_back(std::string("nested ") + tag, page + text);
    std::string closed;
    for (int i = 0; i < 100000; ++i) closed += std::string("</") + tag + ">";
    pages.emplace_back(std::string("closed ") + tag, page + closed + text);
  }
  std::string different, attributes = "<div ", table = "<table>", mixed;
  for (int i = 0; i < 100000; ++i) {
    different += "<b id=" + std::to_string(i) + "><p>";
    attributes += " a" + std::to_string(i) + "=1";
    table += "x<td>";
    mixed += "<table><tr><td><b><a href=x><i>";
  }
  pages.emplace_back("different formatting", different + text);
  pages.emplace_back("attributes", attributes + ">" + text);
  pages.emplace_back("one attribute of 8 MB", "<div class=\"" + std::string(8 << 20, 'x') + "\">" + text);
  pages.emplace_back("foster parents", table + text);
  pages.emplace_back("mixed", mixed + text);
  pages.emplace_back("comment without end", text + "<!--" + std::string(1 << 20, '-'));
  pages.emplace_back("opening brackets", text + std::string(1 << 20, '<'));
  pages.emplace_back(
      "entities", text + [] {
        std::string all;
        for (int i = 0; i < 100000; ++i) all += "&notit;&#x110000;&amp";
        return all;
      }());
  for (const auto& [name, page] : pages) {
    const Stopwatch clock;
    const Result<Extracted> result = extract_main(page);
    EXPECT_LT(clock.seconds(), 5 * kSlowness) << name;
    if (!result.ok()) {
      EXPECT_EQ(result.error().code, ErrorCode::kInvalid) << name;
      EXPECT_THAT(result.error().message, HasSubstr("tree takes more than")) << name;
    }
  }
  // Text under tags that were too deep is still text.
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "<div>";
  EXPECT_THAT(extract(deep + text), HasSubstr("one long and honest sentence"));
  EXPECT_GT(extract_main(deep + text)->tags_cut, 99000);
}

TEST(Extract, MutatedPagesNeverBreakIt) {
  std::vector<std::string> seeds = {kPage};
  const std::string folder = env::test_data() + "/web/pages-dev/";
  for (const char* name : {"011.html.gz", "437.html.gz", "033.html.gz", "154.html.gz"}) {
    const Result<std::string> bytes = read_file(folder + name);
    if (bytes.ok()) seeds.push_back(decompress_gzip(bytes.value(), 1 << 24).value().substr(0, 30000));
  }
  const char* const tokens[] = {"<table>",  "</table>",   "<td>",        "</p>",       "<b>",     "</b>",
                                "<a href=", "\"",         "'",           ">",          "<",       "<!--",
                                "-->",      "<script>",   "</script>",   "&#0;",       "&amp",    "\xFF",
                                "<svg>",    "<![CDATA[",  "<plaintext>", "<textarea>", "</body>", "<li>",
                                "<ul>",     "<template>", "<select>"};
  Philox rng(2024);
  const Stopwatch clock;
  int rounds = 0;
  for (; clock.seconds() < 4 && rounds < 3000; ++rounds) {
    std::string page = seeds[rng.below(seeds.size())];
    for (uint64_t edits = 1 + rng.below(12); edits-- > 0 && !page.empty();) {
      const size_t at = rng.below(page.size()),
                   length = rng.below(std::min<size_t>(page.size() - at, 200) + 1);
      switch (rng.below(5)) {
        case 0:
          page.erase(at, length);
          break;
        case 1:
          page.insert(at, tokens[rng.below(std::size(tokens))]);
          break;
        case 2:
          page.insert(at, page.substr(rng.below(page.size()), length));
          break;
        case 3:
          page[at] = static_cast<char>(rng.below(256));
          break;
        default:
          page.insert(at, std::string(rng.below(400), tokens[rng.below(std::size(tokens))][0]));
          break;
      }
    }
    const Result<Extracted> result = extract_main(decode_text(page, DeclaredCharset::kHtml).utf8);
    ASSERT_TRUE(result.ok());
    ASSERT_EQ(valid_utf8_prefix(result->text), result->text.size());
  }
  RecordProperty("rounds", rounds);
}

std::string one_space(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool nbsp = text.substr(i, 2) == "\xC2\xA0";
    if (nbsp) ++i;
    const bool space = nbsp || text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r';
    if (!space) out += text[i];
    if (space && (out.empty() || out.back() != ' ')) out += ' ';
  }
  return out;
}

TEST(Extract, KeepsWhatPeopleMarkedAsTextOnRealPages) {
  const std::string folder = env::test_data() + "/web/pages-dev/";
  if (env::test_data().empty() || !path_exists(folder + "gold.json"))
    GTEST_SKIP() << "no pages with known text";
  const Json gold = parse_json(read_file(folder + "gold.json").value()).value();
  double kept = 0, missed = 0, extra = 0;
  for (const auto& [name, wanted] : gold.items()) {
    const std::string bytes = decompress_gzip(read_file(folder + name).value(), 1 << 28).value();
    const std::string text = one_space(extract(decode_text(bytes, DeclaredCharset::kHtml).utf8));
    for (const auto& segment : wanted["with"]) {
      const bool there = text.find(one_space(segment.get<std::string>())) != std::string::npos;
      (there ? kept : missed) += 1;
    }
    for (const auto& segment : wanted["without"]) {
      extra += text.find(one_space(segment.get<std::string>())) != std::string::npos ? 1 : 0;
    }
  }
  const double precision = kept / (kept + extra), recall = kept / (kept + missed);
  EXPECT_GT(2 * precision * recall / (precision + recall), 0.925)
      << "precision " << precision << " recall " << recall;
}

}  // namespace
}  // namespace flywheel::data
