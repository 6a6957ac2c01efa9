#include "croquis/simd/page_kernels.h"

#include "croquis/base/dtype.h"
#include "croquis/simd/pages_internal.h"

namespace croquis::simd {
namespace {

// Where a code's bits lie: up to three fields, lowest first.
struct Field {
  int line, shift, width;
};
struct Fields {
  std::array<Field, 3> field{};
  int count = 0;
  constexpr void Add(int line, int shift, int width) { field[size_t(count++)] = {line, shift, width}; }
};

constexpr Fields FieldsOf(int bits, int unit) {
  Fields f;
  if (bits == 1) f.Add(0, unit, 1);
  if (bits == 2) f.Add(unit / 4, 2 * (unit % 4), 2);
  if (bits == 3) {
    if (unit < 6) {
      f.Add(unit / 2, 3 * (unit % 2), 3);
    } else {
      f.Add(unit == 6 ? 0 : 2, 6, 2);
      f.Add(1, unit, 1);
    }
  }
  if (bits >= 4 && bits <= 7) f.Add(unit / 2, 4 * (unit % 2), 4);
  if (bits == 5) f.Add(4, unit, 1);
  if (bits == 6 || bits == 7) f.Add(4 + unit / 4, 2 * (unit % 4), 2);
  if (bits == 7) f.Add(6, unit, 1);
  if (bits == 8) f.Add(unit, 0, 8);
  return f;
}

struct Place {
  size_t atom_at;  // byte offset of the atom in the page
  int unit, lane;
};

Place PlaceOf(const PageLayout& layout, bool values, int64_t t, int64_t i) {
  const int64_t atom = values ? (i / 32) * 8 + t / 16 : (t / 16) * (layout.dim / 32) + i / 32;
  const int64_t unit = values ? ((t % 16) / 4) * 2 + (i % 32) / 16 : (i % 32) / 4;
  const int64_t lane = values ? (i % 16) * 4 + t % 4 : (t % 16) * 4 + i % 4;
  return {layout.CodesAt() + size_t(atom) * 64 * size_t(layout.bits), int(unit), int(lane)};
}

float Half(const std::byte* p, int64_t index) { return F16ToFloat(reinterpret_cast<const f16*>(p)[index]); }

}  // namespace

int GetCode(const PageLayout& layout, bool values, const std::byte* page, int64_t token, int64_t dim) {
  const Place place = PlaceOf(layout, values, token, dim);
  const Fields fields = FieldsOf(layout.bits, place.unit);
  int code = 0, at = 0;
  for (int k = 0; k < fields.count; ++k) {
    const Field& f = fields.field[size_t(k)];
    const int byte = int(page[place.atom_at + size_t(64 * f.line + place.lane)]);
    code |= ((byte >> f.shift) & ((1 << f.width) - 1)) << at;
    at += f.width;
  }
  return code;
}

void SetCode(const PageLayout& layout, bool values, std::byte* page, int64_t token, int64_t dim, int code) {
  const Place place = PlaceOf(layout, values, token, dim);
  const Fields fields = FieldsOf(layout.bits, place.unit);
  int at = 0;
  for (int k = 0; k < fields.count; ++k) {
    const Field& f = fields.field[size_t(k)];
    const int mask = (1 << f.width) - 1;
    std::byte& byte = page[place.atom_at + size_t(64 * f.line + place.lane)];
    byte = std::byte((int(byte) & ~(mask << f.shift)) | (((code >> at) & mask) << f.shift));
    at += f.width;
  }
}

void DecodePageReference(const PageLayout& layout, const Levels& levels, bool values, const std::byte* page,
                         MatView<float> x) {
  const int64_t run_dims = layout.dim / layout.runs;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t i = 0; i < layout.dim; ++i) {
      const int64_t at = (i / run_dims) * kPageTokens + t;
      const float level = float(levels.Value(GetCode(layout, values, page, t, i)));
      x(t, i) = Half(page, at) * levels.step * level + (layout.mins ? Half(page + layout.MinsAt(), at) : 0.f);
    }
  }
}

void NothingToKeep() {}

const PageKernels& Pages(Target target) {
#if defined(__x86_64__)
  switch (target) {
    case Target::kAmx:
      return PagesAmx();
    case Target::kAvx512:
      return PagesAvx512();
    case Target::kAvxVnni:
      return PagesAvxVnni();
    case Target::kAvx2:
      return PagesAvx2();
    case Target::kScalar:
      break;
  }
#else
  static_cast<void>(target);  // only the scalar target is reachable
#endif
  return PagesScalar();
}

const PageKernels& Pages() { return Pages(Active()); }

}  // namespace croquis::simd
