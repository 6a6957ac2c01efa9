// The tensors of a model, whatever file they came from, under Hugging Face's names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/result.h"
#include "croquis/codecs/ggml/blocks.h"
#include "croquis/model/gguf.h"
#include "croquis/model/llama2c.h"
#include "croquis/model/mapped_file.h"

namespace croquis::model {

// Rows of blocks in mapped memory. Plain types are blocks of one number.
struct WeightTensor {
  std::string file_name;  // its name in the file, for messages
  std::string dtype;      // as the file calls it
  bool readable = false;  // whether `type` holds: safetensors may carry integers and doubles that nothing here reads
  codecs::GgmlType type = codecs::GgmlType::kF32;
  std::vector<int64_t> shape;  // row-major
  std::span<const std::byte> bytes;

  // out[0 .. n * shape[1]) = rows row .. row + n of a matrix. Errors: rows outside.
  Status ReadRows(int64_t row, int64_t n, float* out) const;
};

class WeightSet {
 public:
  // model.safetensors, or model.safetensors.index.json with its shards, or the one other *.safetensors of a folder.
  static Result<WeightSet> FromFolder(const std::string& folder);
  static Result<WeightSet> FromGguf(const GgufFile& gguf, std::shared_ptr<const MappedFile> file);
  static Result<WeightSet> FromLlama2c(const Llama2cFile& parsed, std::shared_ptr<const MappedFile> file);

  // Null when the set has no such tensor.
  const WeightTensor* Find(const std::string& name) const;
  // A tensor that must be there with this shape. Errors name the tensor as the file would, and both shapes.
  Result<const WeightTensor*> Get(const std::string& name, const std::vector<int64_t>& shape) const;
  // All numbers of a small tensor of one dimension.
  Result<std::vector<float>> Vector(const std::string& name, int64_t size) const;

  const std::map<std::string, WeightTensor>& tensors() const { return tensors_; }

 private:
  Status Add(std::string name, WeightTensor tensor);

  std::map<std::string, WeightTensor> tensors_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  bool gguf_ = false;
};

// "blk.3.attn_q.weight" to "model.layers.3.self_attn.q_proj.weight" and back; names without a counterpart stay.
std::string NameFromGguf(std::string_view name);
std::string NameToGguf(std::string_view name);

}  // namespace croquis::model
