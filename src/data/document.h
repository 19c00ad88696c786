// One document on its way from a raw file to tokens, and what is said about those that do not arrive.
//
// Every document keeps its source: the file and, for a file of many, the place in it. A dropped document
// keeps its rule with the number that decided; what could not even be read is quarantined with its place.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace flywheel::data {

struct Document {
  std::string id;                    // 16 hex digits, a hash of file and place
  std::string file;                  // as it was found
  std::string place;                 // "" for a whole file, else "line 12", "row 3"
  std::string url, title, language;  // "" where the source does not say
  std::string text;
};

// A document that a rule refused.
struct Dropped {
  std::string id, file, place;
  std::string stage;         // extract, clean, dedup
  std::string rule;          // "gopher_quality.min_words"
  double value = 0;          // what was measured
  double threshold = 0;      // what the rule allows
  int64_t chars = 0;         // length of the text, bytes
  std::string duplicate_of;  // "file place" of the document that stays, for duplicates
};

// Input that could not be read.
struct Quarantined {
  std::string file, place;
  std::string reason;
};

std::string document_id(std::string_view file, std::string_view place);

// One line of JSON without its line end; keys with empty values are left out.
std::string to_json_line(const Document& document);
std::string to_json_line(const Dropped& dropped);
std::string to_json_line(const Quarantined& quarantined);
Result<Document> document_from_json(std::string_view line);

}  // namespace flywheel::data
