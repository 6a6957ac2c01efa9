// Checks for programming errors: active in debug and sanitizer builds, never used on user input.
#pragma once

#include <cassert>

#define CROQUIS_DCHECK(cond) assert(cond)
