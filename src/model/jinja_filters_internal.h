// What the filters of the template language share: their shape, their arguments, and the tables that
// jinja_filters.cc makes one of.
#pragma once

#include <map>

#include "model/jinja_render.h"

namespace flywheel::model::jinja {

using Given = const Arguments&;
using Filter = Value (*)(Renderer&, const Value&, Given);
using Filters = std::map<std::string, Filter, std::less<>>;

const Filters& item_filters();  // jinja_filters_items.cc: over lists, dicts and what else has elements
const Filters& text_filters();  // jinja_filters_text.cc: of text, and what makes text of other values

// The argument at a position or of a name; the fallback where it was not given, or is none.
std::string text_argument(Given given, size_t at, std::string_view name, std::string_view fallback);
int64_t int_argument(Given given, size_t at, std::string_view name, int64_t fallback);
// ... but none is false.
bool flag_argument(Given given, size_t at, std::string_view name, bool fallback);

}  // namespace flywheel::model::jinja
