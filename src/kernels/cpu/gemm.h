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

// Left factors of a product: of row r, at a k that goes up by `next`. Here a[r, k] lies at a[r * step + k].
struct Rows {
  const float* a;
  Index step;
  float operator()(Index r) const { return a[r * step]; }
  void next() { ++a; }
  Rows from(Index row) const { return {a + row * step, step}; }
};

// a[r, k] lies at a[k * step + r].
struct Columns {
  const float* a;
  Index step;
  float operator()(Index r) const { return a[r]; }
  void next() { a += step; }
  Columns from(Index row) const { return {a + row, step}; }
};

// a[r, k] lies at taps[k][r * step].
struct Taps {
  const float* const* taps;
  Index step, first = 0;
  float operator()(Index r) const { return (*taps)[first + r * step]; }
  void next() { ++taps; }
  Taps from(Index row) const { return {taps, step, first + row * step}; }
};

// c[r, :] (+)= sum over k of a[r, k] * b[k, :], for `rows` rows and `vectors` vectors of columns.
template <int rows, int vectors, typename Left>
inline __attribute__((always_inline)) void tile(Left a, const float* b, Index ldb, Index depth, float* c, Index ldc, bool add) {
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
      const Vector left = broadcast(a(r));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += left * right[v];
    }
    a.next();
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

template <int vectors, typename Left>
void panel_product(const Left& a, const float* b, Index ldb, Index rows, Index depth, float* c, Index ldc, bool add) {
  constexpr int most = kTileRows<vectors>;
  Index r = 0;
  for (; r + most <= rows; r += most) tile<most, vectors>(a.from(r), b, ldb, depth, c + r * ldc, ldc, add);
  for (; r + 4 <= rows; r += 4) tile<4, vectors>(a.from(r), b, ldb, depth, c + r * ldc, ldc, add);
  for (; r < rows; ++r) tile<1, vectors>(a.from(r), b, ldb, depth, c + r * ldc, ldc, add);
}

// The same for the columns of one panel, `width` of them.
template <typename Left>
void product(const Left& a, const float* b, Index ldb, Index rows, Index depth, float* c, Index ldc, Index width, bool add) {
  switch (width / kLanes) {
    case 1:
      return panel_product<1>(a, b, ldb, rows, depth, c, ldc, add);
    case 2:
      return panel_product<2>(a, b, ldb, rows, depth, c, ldc, add);
#if VECTOR_BYTES != 32
    case 3:
      return panel_product<3>(a, b, ldb, rows, depth, c, ldc, add);
#endif
#if VECTOR_BYTES == 16
    case 4:
      return panel_product<4>(a, b, ldb, rows, depth, c, ldc, add);
#endif
  }
}

// Copies a panel of matrix(k, column) = from[k * row_step + column * column_step] to to[k, width], columns beyond
// `columns` as zeros; times scale[column], if there is one.
inline void pack_panel(const float* from, Index row_step, Index column_step, Index depth, Index column, Index columns,
                       Index width, float* to, const float* scale = nullptr) {
  const Index valid = std::max<Index>(0, std::min(width, columns - column));
  from += column * column_step;
  // Some rows at a time, so that what is read and what is written lies close together.
  constexpr Index step = 16;
  for (Index first = 0; first < depth; first += step) {
    const Index last = std::min(depth, first + step);
    if (column_step == 1) {
      for (Index k = first; k < last; ++k) std::copy_n(from + k * row_step, valid, to + k * width);
    } else {
      for (Index j = 0; j < valid; ++j) {
        const float factor = scale ? scale[column + j] : 1.0f;
        // No processor foresees that each column goes on where its last rows ended.
        __builtin_prefetch(from + (first + 2 * step) * row_step + j * column_step);
        for (Index k = first; k < last; ++k) to[k * width + j] = factor * from[k * row_step + j * column_step];
      }
    }
    for (Index k = first; k < last; ++k) std::fill(to + k * width + valid, to + (k + 1) * width, 0.0f);
  }
}

// A matrix of depth x width as packed panels, behind each other.
struct Panels {
  const float* packed;
  Index depth, width, panel = kPanel;

  // c = a * columns first ... last - 1, which begin a panel; c begins with the first of them.
  template <typename Left>
  void multiply(const Left& a, Index rows, Index first, Index last, float* c, Index ldc) const {
    for (Index column = first; column < last; column += panel)
      product(a, packed + column * depth, std::min(panel, width - column), rows, depth, c + column - first, ldc,
              std::min(panel, width - column), false);
  }
};
