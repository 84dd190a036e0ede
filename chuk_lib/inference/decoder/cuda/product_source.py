"""CUDA C++ of the kernels for products and for the first factor of adapters, compiled by MLX when
first used: (helpers, body) of each. Upper-case names that no helper declares are constants which
the caller sets."""

from __future__ import annotations

from chuk_lib.inference.decoder.cuda.source import PACK

_PRODUCT_HEADER = (
    PACK
    + r"""
namespace chuk {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ void multiply(
    float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 16 rows of each of PARTS weights times 8 * COLUMNS rows of x: the warps of a block share K among them, 32 at a time.
// A lane reads 16 bytes of a row; which of a product's columns they are does not matter as long as x has the same.
// Rows of x are `pitch` apart.
template <int COLUMNS, int PARTS, int WARPS, int AHEAD>
__device__ __forceinline__ void tiles(
    const bf16* x, int rows, int pitch, int K, const bf16* const* weights, float (*sums)[COLUMNS][4]) {
  const int warp = threadIdx.x / 32, high = threadIdx.x % 32 / 4, low = threadIdx.x % 4 * 8;
  const bf16* from[COLUMNS];
  for (int n = 0; n < COLUMNS; ++n) from[n] = x + (size_t)min(n * 8 + high, rows - 1) * pitch + low;
#pragma unroll 1
  for (int begin = warp * 32; begin < K; begin += WARPS * AHEAD * 32) {
    uint4 a[AHEAD][PARTS][2], b[AHEAD][COLUMNS];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      const int at = begin + u * WARPS * 32;
      if (at < K) {
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
          a[u][p][0] = __ldcs(reinterpret_cast<const uint4*>(weights[p] + (size_t)high * K + low + at));
          a[u][p][1] = __ldcs(reinterpret_cast<const uint4*>(weights[p] + (size_t)(high + 8) * K + low + at));
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) b[u][n] = *reinterpret_cast<const uint4*>(from[n] + at);
      }
    }
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      if (begin + u * WARPS * 32 < K) {
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
          const uint4 up = a[u][p][0], down = a[u][p][1];
#pragma unroll
          for (int n = 0; n < COLUMNS; ++n) {
            multiply(sums[p][n], up.x, down.x, up.y, down.y, b[u][n].x, b[u][n].y);
            multiply(sums[p][n], up.z, down.z, up.w, down.w, b[u][n].z, b[u][n].w);
          }
        }
      }
    }
  }
}

// What an adapter adds to one output: its row of the second factor times the `rank` numbers that the first one made.
__device__ __forceinline__ float adapted(const bf16* low, const bf16* up, int rank) {
  float sum = 0.0f;
  for (int i = 0; i < rank; i += 8) {
    const Pack<bf16> a = load(low + i), b = load(up + i);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += __bfloat162float(a.at[e]) * __bfloat162float(b.at[e]);
  }
  return sum;
}

}  // namespace chuk
"""
)

_PRODUCT_BODY = r"""
  using chuk::bf16;
  constexpr int PARTS = GATED ? 2 : 1, PITCH = 20;
  constexpr int FIT = 48 * 1024 / (WARPS * PARTS * 8 * PITCH * 4), ROOM = FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1;
  constexpr int TOGETHER = COLUMNS < ROOM ? COLUMNS : ROOM;
  __shared__ float shared[WARPS][PARTS][TOGETHER][8 * PITCH];
  const int rows = x_shape[0], pitch = x_shape[1], K = w0_shape[1], first = blockIdx.x * 16;
  const int end0 = w0_shape[0], end1 = end0 + (w1 == w0 ? 0 : w1_shape[0]), end2 = end1 + (w2 == w0 ? 0 : w2_shape[0]);
  const int width = GATED ? end0 : end2;
  const int part = GATED ? 0 : first >= end1 ? 2 : first >= end0 ? 1 : 0;
  const bf16* weights[PARTS];
  weights[0] = w0 + (size_t)first * K;
  if (GATED) {
    weights[PARTS - 1] = w1 + (size_t)first * K;
  } else if (part == 2) {
    weights[0] = w2 + (size_t)(first - end1) * K;
  } else if (part == 1) {
    weights[0] = w1 + (size_t)(first - end0) * K;
  }
  float sums[PARTS][COLUMNS][4] = {};
  chuk::tiles<COLUMNS, PARTS, WARPS, AHEAD>(x, rows, pitch, K, weights, sums);

  const int warp = threadIdx.x / 32, high = threadIdx.x % 32 / 4, low = threadIdx.x % 4 * 2;
#pragma unroll
  for (int begin = 0; begin < COLUMNS; begin += TOGETHER) {
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
#pragma unroll
      for (int n = 0; n < TOGETHER; ++n) {
        float* tile = shared[warp][p][n];
        const float* sum = sums[p][begin + n];
        tile[low * PITCH + high] = sum[0];
        tile[(low + 1) * PITCH + high] = sum[1];
        tile[low * PITCH + high + 8] = sum[2];
        tile[(low + 1) * PITCH + high + 8] = sum[3];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TOGETHER * 128; i += WARPS * 32) {
      const int o = i % 16, column = i / 16 % 8, n = i / 128;
      const int row = (begin + n) * 8 + column;
      float result = 0.0f, up = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) {
        result += shared[w][0][n][column * PITCH + o];
        if (GATED) up += shared[w][PARTS - 1][n][column * PITCH + o];
      }
      if (row < rows) {
        const int at = first + o;
        const size_t to = (size_t)row * width + at;
        if (ADAPTED) {
          const int rank = ups_shape[1];
          const bf16* made = x + (size_t)row * pitch + K + part * rank;
          result += chuk::adapted(made, ups + (size_t)at * rank, rank);
          if (GATED) up += chuk::adapted(made + rank, ups + (size_t)(end0 + at) * rank, rank);
        }
        if (GATED) {
          const float gate = __bfloat162float(__float2bfloat16(result));
          result = __bfloat162float(__float2bfloat16(gate / (1.0f + __expf(-gate))));
          result *= __bfloat162float(__float2bfloat16(up));
        }
        if (bias != w0) result += __bfloat162float(bias[at]);
        if (plus != w0) result += __bfloat162float(plus[to]);
        out[to] = __float2bfloat16(result);
      }
    }
    __syncthreads();
  }
"""

_LOWER_HEADER = (
    PACK
    + r"""
namespace chuk {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16(x)); }

}  // namespace chuk
"""
)

_LOWER_BODY = r"""
  using chuk::bf16;
  constexpr int WARPS = THREADS / 32, TOGETHER = 4;
  __shared__ float sums[WARPS], found[WARPS][TOGETHER];
  const int K = x_shape[1], R = downs_shape[0], pitch = WIDE ? K + R : R;
  const int parts = (R + EACH - 1) / EACH, row = blockIdx.x / parts, part = blockIdx.x % parts;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bf16* from = x + (size_t)row * K;
  bf16* to = out + (size_t)row * pitch;

  float scale = 1.0f;
  if (NORMED) {
    float squares = 0.0f;
    for (int i = threadIdx.x * 8; i < K; i += THREADS * 8) {
      const chuk::Pack<bf16> a = chuk::load(from + i);
#pragma unroll
      for (int e = 0; e < 8; ++e) squares += __bfloat162float(a.at[e]) * __bfloat162float(a.at[e]);
    }
    squares = chuk::warp_sum(squares);
    if (lane == 0) sums[warp] = squares;
    __syncthreads();
    squares = 0.0f;
    for (int w = 0; w < WARPS; ++w) squares += sums[w];
    scale = rsqrtf(squares / K + eps[0]);
  }
  if (WIDE && part == 0) {
    for (int i = threadIdx.x * 8; i < K; i += THREADS * 8) {
      chuk::Pack<bf16> a = chuk::load(from + i);
      if (NORMED) {
        const chuk::Pack<bf16> b = chuk::load(norm + i);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float x = chuk::rounded(__bfloat162float(a.at[e]) * scale);
          a.at[e] = __float2bfloat16(x * __bfloat162float(b.at[e]));
        }
      }
      *reinterpret_cast<chuk::Pack<bf16>*>(to + i) = a;
    }
  }
  // TOGETHER rows of A to a warp; what warps are left over share K among them.
  const int first = part * EACH, count = min(R - first, EACH), groups = (count + TOGETHER - 1) / TOGETHER;
  const int splits = WARPS / groups, group = warp % groups, split = warp / groups;
  if (split < splits) {
    float sum[TOGETHER] = {};
#pragma unroll 2
    for (int i = (split * 32 + lane) * 8; i < K; i += splits * 256) {
      const chuk::Pack<bf16> a = chuk::load(from + i), b = chuk::load(NORMED ? norm + i : from + i);
      chuk::Pack<bf16> down[TOGETHER];
#pragma unroll
      for (int t = 0; t < TOGETHER; ++t) {
        down[t] = chuk::load(downs + (size_t)min(first + group * TOGETHER + t, R - 1) * K + i);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        float x = __bfloat162float(a.at[e]);
        if (NORMED) x = chuk::rounded(chuk::rounded(x * scale) * __bfloat162float(b.at[e]));
#pragma unroll
        for (int t = 0; t < TOGETHER; ++t) sum[t] += x * __bfloat162float(down[t].at[e]);
      }
    }
#pragma unroll
    for (int t = 0; t < TOGETHER; ++t) {
      const float whole = chuk::warp_sum(sum[t]);
      if (lane == 0) found[warp][t] = whole;
    }
  }
  __syncthreads();
  for (int r = threadIdx.x; r < count; r += THREADS) {
    float whole = 0.0f;
    for (int s = 0; s < splits; ++s) whole += found[s * groups + r / TOGETHER][r % TOGETHER];
    to[(WIDE ? K : 0) + first + r] = __float2bfloat16(chuk::rounded(whole) * scales[first + r]);
  }
"""

PRODUCT, LOWER = (_PRODUCT_HEADER, _PRODUCT_BODY), (_LOWER_HEADER, _LOWER_BODY)
