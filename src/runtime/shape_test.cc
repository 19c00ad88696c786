#include "runtime/shape.h"

#include <gtest/gtest.h>

namespace flywheel::runtime {
namespace {

TEST(Shape, GroupsAlongAnAxisAndAProductOfAxes) {
  const Shape shape({{"data", 2}, {"tensor", 3}, {"pipeline", 2}});
  EXPECT_EQ(shape.size(), 12);
  const int rank = 9;  // data 1, tensor 1, pipeline 1
  EXPECT_EQ(shape.group(rank, "data").value(), (std::vector<int>{3, 9}));
  EXPECT_EQ(shape.group(rank, "tensor").value(), (std::vector<int>{7, 9, 11}));
  EXPECT_EQ(shape.group(rank, "pipeline").value(), (std::vector<int>{8, 9}));
  EXPECT_EQ(shape.group(rank, "data,pipeline").value(), (std::vector<int>{2, 3, 8, 9}));
  EXPECT_EQ(shape.group(rank, "pipeline,data").value(), (std::vector<int>{2, 3, 8, 9}));
  EXPECT_EQ(shape.group(rank, "").value().size(), 12u);
  EXPECT_EQ(shape.group(rank, "tensor,pipeline,data").value(), shape.group(rank, "").value());
  EXPECT_EQ(shape.product("pipeline,data").value(), "data,pipeline");
}

// By definition: a group is who agrees on all other axes.
TEST(Shape, EveryProductIsWhoAgreesOnTheOtherAxes) {
  const Shape shape({{"data", 3}, {"expert", 1}, {"tensor", 2}, {"context", 4}});
  for (int subset = 1; subset < 16; ++subset) {
    std::string axes;
    for (size_t i = 0; i < 4; ++i)
      if ((subset >> i & 1) != 0) axes += (axes.empty() ? "" : ",") + shape.axes()[i].name;
    for (int rank = 0; rank < shape.size(); ++rank) {
      std::vector<int> wanted;
      for (int other = 0; other < shape.size(); ++other) {
        bool agrees = true;
        for (size_t i = 0; i < 4; ++i) {
          const std::string& axis = shape.axes()[i].name;
          if ((subset >> i & 1) == 0)
            agrees = agrees && shape.coordinate(rank, axis).value() == shape.coordinate(other, axis).value();
        }
        if (agrees) wanted.push_back(other);
      }
      EXPECT_EQ(shape.group(rank, axes).value(), wanted) << axes << " of " << rank;
    }
  }
}

TEST(Shape, RefusesWhatIsNoAxis) {
  const Shape shape({{"data", 2}, {"tensor", 2}});
  for (const char* axes : {"pipeline", "data,", ",data", "data,data", "data tensor", ","})
    EXPECT_EQ(shape.group(0, axes).error().code, ErrorCode::kInvalid) << axes;
  EXPECT_EQ(Shape({{"a,b", 2}}).check().error().code, ErrorCode::kInvalid);
}

}  // namespace
}  // namespace flywheel::runtime
