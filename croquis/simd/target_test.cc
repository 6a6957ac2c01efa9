#include "croquis/simd/target.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "croquis/simd/page_kernels.h"

namespace croquis::simd {
namespace {

TEST(TargetTest, ReachableStartsAtScalarAndAscends) {
  const auto all = Reachable();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.front(), Target::kScalar);
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
}

TEST(TargetTest, ForceIsObeyedByTheTables) {
  for (const Target target : Reachable()) {
    ASSERT_TRUE(Force(Name(target)).has_value());
    EXPECT_EQ(Active(), target);
    EXPECT_EQ(&Pages(), &Pages(target));
  }
  ASSERT_TRUE(Force("").has_value());
}

TEST(TargetTest, UnknownNamesAreRefusedAndListWhatThereIs) {
  const Target before = Active();
  const Status status = Force("avx1024");
  ASSERT_FALSE(status.has_value());
  EXPECT_NE(status.error().message.find("avx1024"), std::string::npos);
  EXPECT_NE(status.error().message.find("scalar"), std::string::npos);
  EXPECT_EQ(Active(), before);
}

TEST(TargetTest, EnvironmentIsVerified) {
  ASSERT_EQ(setenv("CROQUIS_SIMD", "scalar", 1), 0);
  EXPECT_TRUE(VerifyForced().has_value());
  ASSERT_EQ(setenv("CROQUIS_SIMD", "neon", 1), 0);
  const Status status = VerifyForced();
  ASSERT_FALSE(status.has_value());
  EXPECT_NE(status.error().message.find("CROQUIS_SIMD"), std::string::npos);
  ASSERT_EQ(unsetenv("CROQUIS_SIMD"), 0);
  EXPECT_TRUE(VerifyForced().has_value());
}

}  // namespace
}  // namespace croquis::simd
