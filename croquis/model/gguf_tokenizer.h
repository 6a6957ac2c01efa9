// The tokenizer that a GGUF file carries in its metadata.
#pragma once

#include <memory>

#include "croquis/base/result.h"
#include "croquis/model/gguf.h"
#include "croquis/model/tokenizer.h"

namespace croquis::model {

// Null when the file carries none. Errors: lists of the wrong kind, ids that are no ids, those of MakeGgufTokenizer.
Result<std::unique_ptr<Tokenizer>> TokenizerFromGguf(const GgufFile& file);

}  // namespace croquis::model
