// Products of matrices, as tiles that stay in registers.
#pragma once

#include <algorithm>

#include "vector.h"

// A panel is a group of columns as wide as a tile; a tile has as many rows as the registers hold.
#if VECTOR_BYTES == 64
constexpr Index kMostVectors = 3;
template <int vectors>
constexpr int kTileRows = vectors == 3 ? 8 : vectors == 2 ? 12 : 16;
#elif VECTOR_BYTES == 32
constexpr Index kMostVectors = 2;
template <int vectors>
constexpr int kTileRows = 6;
#else
constexpr Index kMostVectors = 4;
#if defined(__aarch64__)
template <int vectors>
constexpr int kTileRows = 6;
#else
template <int vectors>
constexpr int kTileRows = 2;
#endif
#endif

constexpr Index kPanel = kMostVectors * kLanes;

// A multiple of every tile's rows.
constexpr Index kRowBlock = 48;

inline Index panel_width(Index column, Index columns) { return std::min(kPanel, columns - column); }

// c[r, :] (+)= sum over k of a(r, k) * b[k, :], for `rows` rows and `vectors` vectors of columns.
// a(r, k) is a[r * lda + k], or a[k * lda + r] where `transposed`.
template <int rows, int vectors, bool transposed>
inline __attribute__((always_inline)) void tile(
    const float* a, Index lda, const float* b, Index ldb, Index depth, float* c, Index ldc, bool add) {
  Vector sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = Vector{};
  for (Index k = 0; k < depth; ++k) {
    Vector right[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vector left = broadcast(transposed ? a[r] : a[r * lda]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += left * right[v];
    }
    a += transposed ? lda : 1;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      float* to = c + r * ldc + v * kLanes;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
}

template <int vectors, bool transposed>
void panel_product(const float* a, Index lda, const float* b, Index ldb, Index rows, Index depth, float* c, Index ldc,
                   bool add) {
  constexpr int most = kTileRows<vectors>;
  const Index step = transposed ? 1 : lda;
  Index r = 0;
  for (; r + most <= rows; r += most)
    tile<most, vectors, transposed>(a + r * step, lda, b, ldb, depth, c + r * ldc, ldc, add);
  for (; r + 4 <= rows; r += 4) tile<4, vectors, transposed>(a + r * step, lda, b, ldb, depth, c + r * ldc, ldc, add);
  for (; r < rows; ++r) tile<1, vectors, transposed>(a + r * step, lda, b, ldb, depth, c + r * ldc, ldc, add);
}

// The same for the columns of one panel, `width` of them.
template <bool transposed>
void product(const float* a, Index lda, const float* b, Index ldb, Index rows, Index depth, float* c, Index ldc,
             Index width, bool add) {
  switch (width / kLanes) {
    case 1:
      return panel_product<1, transposed>(a, lda, b, ldb, rows, depth, c, ldc, add);
    case 2:
      return panel_product<2, transposed>(a, lda, b, ldb, rows, depth, c, ldc, add);
#if VECTOR_BYTES != 32
    case 3:
      return panel_product<3, transposed>(a, lda, b, ldb, rows, depth, c, ldc, add);
#endif
#if VECTOR_BYTES == 16
    case 4:
      return panel_product<4, transposed>(a, lda, b, ldb, rows, depth, c, ldc, add);
#endif
  }
}

// Copies a panel of matrix(k, column) = from[k * row_step + column * column_step] to to[k, width], columns beyond
// `columns` as zeros.
inline void pack_panel(const float* from, Index row_step, Index column_step, Index depth, Index column, Index columns,
                       Index width, float* to) {
  const Index valid = std::max<Index>(0, std::min(width, columns - column));
  from += column * column_step;
  // Some rows at a time, so that what is read and what is written lies close together.
  constexpr Index step = 16;
  for (Index first = 0; first < depth; first += step) {
    const Index last = std::min(depth, first + step);
    if (column_step == 1) {
      for (Index k = first; k < last; ++k) std::copy_n(from + k * row_step, valid, to + k * width);
    } else {
      for (Index j = 0; j < valid; ++j)
        for (Index k = first; k < last; ++k) to[k * width + j] = from[k * row_step + j * column_step];
    }
    for (Index k = first; k < last; ++k) std::fill(to + k * width + valid, to + (k + 1) * width, 0.0f);
  }
}
