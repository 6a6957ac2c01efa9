// Text for evaluations: files, folders of files, and token windows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::eval {

// The bytes of a file. Errors: missing, a folder, unreadable, larger than `limit` bytes.
Result<std::string> ReadFile(const std::string& path, int64_t limit = int64_t(1) << 31);
// The bytes of a text file, or of all *.txt files of a folder in the order of their names, with one empty line between
// them. Errors: those of ReadFile; a folder without *.txt; compressed files (named by their first bytes); no text.
Result<std::string> ReadText(const std::string& path);
// The start of a text of at most `bytes` bytes, cut before a character, not inside it.
std::string TextPrefix(const std::string& text, int64_t bytes);

// Starts of the windows of `body` tokens that an evaluation of `tokens` tokens reads: consecutive, not overlapping;
// when `limit` (0: all) is less than what there is, `limit` of them spread evenly from the first. Empty when tokens <
// body.
std::vector<int64_t> WindowStarts(int64_t tokens, int64_t body, int64_t limit);

}  // namespace croquis::eval
