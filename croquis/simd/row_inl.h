// The loops of the row kernels, written in the vectors `V` of one instruction set. Included inside the anonymous
// namespace of row_avx2.cc and row_avx512.cc, after V, so that each keeps machine code of its own; no shared inline
// function is called here (see dense_inl.h).

using F = V::F;
constexpr int kW = V::kW;
constexpr int64_t kAhead = 16;  // rows that are asked for before they are read

template <RowType kType>
inline F LoadRow(const std::byte* x, int64_t i) {
  if constexpr (kType == RowType::kF32) return V::Load(reinterpret_cast<const float*>(x) + i);
  if constexpr (kType == RowType::kBf16) return V::LoadBf16(reinterpret_cast<const uint16_t*>(x) + i);
  return V::LoadF16(reinterpret_cast<const uint16_t*>(x) + i);
}
// The last, partial vector.
template <RowType kType>
inline F LoadRowN(const std::byte* x, int64_t i, int64_t n) {
  if constexpr (kType == RowType::kF32) return V::LoadN(reinterpret_cast<const float*>(x) + i, n);
  alignas(64) uint16_t last[kW] = {};
  for (int64_t j = 0; j < n; ++j) last[j] = reinterpret_cast<const uint16_t*>(x)[i + j];
  return LoadRow<kType>(reinterpret_cast<const std::byte*>(last), 0);
}

// fn(r, row) for each row, lines of later ones asked for.
template <RowType kType, class Fn>
inline void EachRow(const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim, const Fn& fn) {
  constexpr int64_t kBytes = kType == RowType::kF32 ? 4 : 2;
  for (int64_t r = 0; r < n; ++r) {
    if (index != nullptr && r + kAhead < n)
      for (int64_t at = 0; at < dim * kBytes; at += 64)
        _mm_prefetch(reinterpret_cast<const char*>(x + index[r + kAhead] * stride * kBytes + at), _MM_HINT_T0);
    fn(r, x + (index != nullptr ? index[r] : r) * stride * kBytes);
  }
}

template <RowType kType>
void Widen(const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim, float* out) {
  EachRow<kType>(
      x, stride, index, n, dim, [&](int64_t r, const std::byte* row) __attribute__((always_inline)) {
        float* const to = out + r * dim;
        int64_t i = 0;
        for (; i + kW <= dim; i += kW) V::Store(to + i, LoadRow<kType>(row, i));
        if (i < dim) V::StoreN(to + i, LoadRowN<kType>(row, i, dim - i), dim - i);
      });
}

// C vectors of columns stay in registers for all rows.
template <RowType kType, int C>
void AddColumns(const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t first, float* sum) {
  F total[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) total[c] = V::Load(sum + first + c * kW);
  EachRow<kType>(
      x, stride, index, n, first + C * kW, [&](int64_t, const std::byte* row) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) total[c] = V::Add(total[c], LoadRow<kType>(row, first + c * kW));
      });
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) V::Store(sum + first + c * kW, total[c]);
}

template <RowType kType>
void AddRowsOf(const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim, float* sum) {
  int64_t i = 0;
  for (; i + 8 * kW <= dim; i += 8 * kW) AddColumns<kType, 8>(x, stride, index, n, i, sum);
  if (i + 4 * kW <= dim) AddColumns<kType, 4>(x, stride, index, n, i, sum), i += 4 * kW;
  for (; i + kW <= dim; i += kW) AddColumns<kType, 1>(x, stride, index, n, i, sum);
  if (i == dim) return;
  F total = V::LoadN(sum + i, dim - i);
  EachRow<kType>(
      x, stride, index, n, dim, [&](int64_t, const std::byte* row) __attribute__((always_inline)) {
        total = V::Add(total, LoadRowN<kType>(row, i, dim - i));
      });
  V::StoreN(sum + i, total, dim - i);
}

void WidenAny(RowType type, const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim,
              float* out) {
  if (type == RowType::kF32) return Widen<RowType::kF32>(x, stride, index, n, dim, out);
  if (type == RowType::kBf16) return Widen<RowType::kBf16>(x, stride, index, n, dim, out);
  Widen<RowType::kF16>(x, stride, index, n, dim, out);
}

void AddRows(RowType type, const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim,
             float* sum) {
  if (type == RowType::kF32) return AddRowsOf<RowType::kF32>(x, stride, index, n, dim, sum);
  if (type == RowType::kBf16) return AddRowsOf<RowType::kBf16>(x, stride, index, n, dim, sum);
  AddRowsOf<RowType::kF16>(x, stride, index, n, dim, sum);
}

template <RowType kType>
void SquaresOf(const std::byte* x, int64_t stride, int64_t n, int64_t dim, float* out) {
  EachRow<kType>(
      x, stride, nullptr, n, dim, [&](int64_t r, const std::byte* row) __attribute__((always_inline)) {
        F a = V::Zero(), b = V::Zero();
        int64_t i = 0;
        for (; i + 2 * kW <= dim; i += 2 * kW) {
          const F u = LoadRow<kType>(row, i), v = LoadRow<kType>(row, i + kW);
          a = V::Fma(u, u, a), b = V::Fma(v, v, b);
        }
        for (; i < dim; i += kW) {
          const F u = i + kW <= dim ? LoadRow<kType>(row, i) : LoadRowN<kType>(row, i, dim - i);
          a = V::Fma(u, u, a);
        }
        out[r] = V::Sum(V::Add(a, b));
      });
}
void Squares(RowType type, const std::byte* x, int64_t stride, int64_t n, int64_t dim, float* out) {
  if (type == RowType::kF32) return SquaresOf<RowType::kF32>(x, stride, n, dim, out);
  if (type == RowType::kBf16) return SquaresOf<RowType::kBf16>(x, stride, n, dim, out);
  SquaresOf<RowType::kF16>(x, stride, n, dim, out);
}

void AddScaled(const float* x, int64_t n, float a, float b, float* y) {
  const F va = V::Set(a), vb = V::Set(b);
  int64_t i = 0;
  for (; i + kW <= n; i += kW) V::Store(y + i, V::Mul(V::Fma(va, V::Load(x + i), V::Load(y + i)), vb));
  if (i < n) V::StoreN(y + i, V::Mul(V::Fma(va, V::LoadN(x + i, n - i), V::LoadN(y + i, n - i)), vb), n - i);
}
