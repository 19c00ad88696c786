// What keeps a hostile page from costing more than its size: an HTML5 parser walks its stack of open elements
// for each tag and compares each attribute of a tag with those before it, so 100,000 nested tags, or
// attributes in one tag, take minutes. Browsers cut such pages as well (Blink: 512 levels).
//
//   std::string cut; HtmlGuardCounts counts;
//   std::string_view safe = guard_html(page, {}, cut, counts);   // the page itself when nothing was cut
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flywheel::data {

struct HtmlLimits {
  int max_depth = 256;       // a tag that would nest deeper is left out; its text stays
  int max_attributes = 128;  // a tag with more loses all of them
};

struct HtmlGuardCounts {
  int64_t tags_cut = 0, attributes_cut = 0;
};

// `page`, or what is left of it in `storage`.
std::string_view guard_html(std::string_view page, const HtmlLimits& limits, std::string& storage,
                            HtmlGuardCounts& counts);

}  // namespace flywheel::data
