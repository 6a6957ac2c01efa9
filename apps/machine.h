// Facts about the machine that measurements need.
#pragma once

#include <cstdint>

namespace croquis::apps {

// Bytes of the first processor's data or unified cache of a level (1, 2, 3); 0 when the system does not say.
int64_t CacheBytes(int level);

}  // namespace croquis::apps
