// Files that are written whole or not at all.
#pragma once

#include <string>
#include <string_view>

#include "croquis/base/result.h"

namespace croquis {

// Writes to a temporary name in the same folder, syncs and renames, so that a file that is there is replaced whole or
// not at all. Errors name the path and the cause.
Status WriteFileAtomic(const std::string& path, std::string_view bytes);
// Whether WriteFileAtomic could work, checked before long work starts: the folder exists and takes a file.
Status CheckWritable(const std::string& path);

}  // namespace croquis
