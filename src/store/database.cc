#include "store/database.h"

#include <limits>

#include "base/check.h"

namespace flywheel::store {

int64_t Row::integer(size_t column) const {
  const auto* value = std::get_if<int64_t>(&values[column]);
  CHECK(value != nullptr || is_null(column), "column {} is not an integer", column);
  return value == nullptr ? 0 : *value;
}

double Row::number(size_t column) const {
  if (const auto* integer = std::get_if<int64_t>(&values[column])) return static_cast<double>(*integer);
  const auto* value = std::get_if<double>(&values[column]);
  CHECK(value != nullptr || is_null(column), "column {} is not a number", column);
  return value == nullptr ? std::numeric_limits<double>::quiet_NaN() : *value;
}

const std::string& Row::text(size_t column) const {
  static const std::string empty;
  const auto* value = std::get_if<std::string>(&values[column]);
  CHECK(value != nullptr || is_null(column), "column {} is not a text", column);
  return value == nullptr ? empty : *value;
}

const std::string& Row::bytes(size_t column) const {
  static const std::string empty;
  const auto* value = std::get_if<Bytes>(&values[column]);
  CHECK(value != nullptr || is_null(column), "column {} is not bytes", column);
  return value == nullptr ? empty : value->data;
}

}  // namespace flywheel::store
