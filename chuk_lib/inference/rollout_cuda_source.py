"""CUDA C++ of the decoding kernels, compiled by MLX when first used: (helpers, body) of each. Upper-case names that no
helper declares are constants which the caller sets."""

from __future__ import annotations

_PACK = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace chuk {

template <typename T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T at[SIZE];
};

template <typename T>
__device__ __forceinline__ Pack<T> load(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

}  // namespace chuk
"""

_PRODUCT_HEADER = (
    _PACK
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
template <int COLUMNS, int PARTS, int WARPS, int AHEAD>
__device__ __forceinline__ void tiles(
    const bf16* x, int rows, int K, const bf16* const* weights, float (*sums)[COLUMNS][4]) {
  const int warp = threadIdx.x / 32, high = threadIdx.x % 32 / 4, low = threadIdx.x % 4 * 8;
  const bf16* from[COLUMNS];
  for (int n = 0; n < COLUMNS; ++n) from[n] = x + (size_t)min(n * 8 + high, rows - 1) * K + low;
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

}  // namespace chuk
"""
)

_PRODUCT_BODY = r"""
  using chuk::bf16;
  constexpr int PARTS = GATED ? 2 : 1, PITCH = 20;
  constexpr int FIT = 48 * 1024 / (WARPS * PARTS * 8 * PITCH * 4), ROOM = FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1;
  constexpr int TOGETHER = COLUMNS < ROOM ? COLUMNS : ROOM;
  __shared__ float shared[WARPS][PARTS][TOGETHER][8 * PITCH];
  const int rows = x_shape[0], K = x_shape[1], first = blockIdx.x * 16;
  const int end0 = w0_shape[0], end1 = end0 + (w1 == w0 ? 0 : w1_shape[0]), end2 = end1 + (w2 == w0 ? 0 : w2_shape[0]);
  const int width = GATED ? end0 : end2;
  const bf16* weights[PARTS];
  weights[0] = w0 + (size_t)first * K;
  if (GATED) {
    weights[PARTS - 1] = w1 + (size_t)first * K;
  } else if (first >= end1) {
    weights[0] = w2 + (size_t)(first - end1) * K;
  } else if (first >= end0) {
    weights[0] = w1 + (size_t)(first - end0) * K;
  }
  float sums[PARTS][COLUMNS][4] = {};
  chuk::tiles<COLUMNS, PARTS, WARPS, AHEAD>(x, rows, K, weights, sums);

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

_ATTEND_HEADER = (
    _PACK
    + r"""
namespace chuk {

// One more key for each group of lanes: scores of Q queries, then the running maximum, weight and sum.
template <int Q, int E, int LANES>
__device__ __forceinline__ void take(
    const float (*q)[E], const float* k, const float* v, bool valid, float* most, float* weight, float (*sum)[E]) {
#pragma unroll
  for (int h = 0; h < Q; ++h) {
    float score = 0.0f;
#pragma unroll
    for (int e = 0; e < E; ++e) score += q[h][e] * k[e];
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) score += __shfl_xor_sync(~0u, score, step);
    score = valid ? score : -1e30f;
    const float now = fmaxf(most[h], score), old = exp2f(most[h] - now), fresh = valid ? exp2f(score - now) : 0.0f;
    most[h] = now;
    weight[h] = weight[h] * old + fresh;
#pragma unroll
    for (int e = 0; e < E; ++e) sum[h][e] = sum[h][e] * old + fresh * v[e];
  }
}

}  // namespace chuk
"""
)

_ATTEND_BODY = r"""
  constexpr int E = chuk::Pack<T>::SIZE, LANES = D / E, SPAN = 32 / LANES, GROUPS = WARPS * SPAN, AHEAD = 2;
  constexpr int PARTS = N / K / Q;
  __shared__ float turned[Q + 1][D];
  __shared__ float mosts[WARPS][Q], weights[WARPS][Q], results[WARPS][Q][D];
  const int part = blockIdx.x % PARTS, kv = blockIdx.x / PARTS % K, row = blockIdx.x / (PARTS * K);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int end = column[0], begin = begins[row], head = (kv * PARTS + part) * Q;
  const T* mine = qkv + (size_t)row * (N + 2 * K) * D;
  const float* turn = turns + (size_t)(end - begin) * D;

  for (int vector = warp; vector < Q + 1; vector += WARPS) {
    const bool query = vector < Q;
    const T* from = mine + (size_t)(query ? head + vector : N + kv) * D;
    float scale = 1.0f;
    if (NORMED) {
      float squares = 0.0f;
      for (int i = lane; i < D; i += 32) squares += (float)from[i] * (float)from[i];
      scale = rsqrtf(chuk::warp_sum(squares) / D + constants[query ? 1 : 2]);
    }
    for (int i = lane; i < D / 2; i += 32) {
      float a = (float)from[i], b = (float)from[i + D / 2];
      NORM_HERE
      turned[vector][i] = (float)(T)(a * turn[i] - b * turn[i + D / 2]);
      turned[vector][i + D / 2] = (float)(T)(b * turn[i] + a * turn[i + D / 2]);
    }
  }
  __syncthreads();

  const int at = lane % LANES * E, place = lane / LANES;
  const size_t base = ((size_t)row * K + kv) * keys_shape[2] * D + at;
  const T* own_keys = keys + base;
  const T* own_values = values + base;
  float q[Q][E], most[Q], weight[Q] = {}, sum[Q][E] = {};
#pragma unroll
  for (int h = 0; h < Q; ++h) {
    most[h] = -1e30f;
#pragma unroll
    for (int e = 0; e < E; ++e) q[h][e] = turned[h][at + e] * constants[0] * 1.4426950408889634f;
  }
  for (int first = begin + warp * SPAN; first < end; first += GROUPS * AHEAD) {
    chuk::Pack<T> k[AHEAD] = {}, v[AHEAD] = {};
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      const int c = first + place + u * GROUPS;
      if (c < end) {
        k[u] = chuk::load(own_keys + (size_t)c * D);
        v[u] = chuk::load(own_values + (size_t)c * D);
      }
    }
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      float key[E], value[E];
#pragma unroll
      for (int e = 0; e < E; ++e) {
        key[e] = (float)k[u].at[e];
        value[e] = (float)v[u].at[e];
      }
      chuk::take<Q, E, LANES>(q, key, value, first + place + u * GROUPS < end, most, weight, sum);
    }
  }
  if (warp == 0) {
    const chuk::Pack<T> fresh = chuk::load(mine + (size_t)(N + K + kv) * D + at);
    float key[E], value[E];
    chuk::Pack<T> rounded;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      key[e] = turned[Q][at + e];
      value[e] = (float)fresh.at[e];
      rounded.at[e] = (T)key[e];
    }
    chuk::take<Q, E, LANES>(q, key, value, place == 0, most, weight, sum);
    if (part == 0 && place == 0) {
      *reinterpret_cast<chuk::Pack<T>*>(const_cast<T*>(own_keys) + (size_t)end * D) = rounded;
      *reinterpret_cast<chuk::Pack<T>*>(const_cast<T*>(own_values) + (size_t)end * D) = fresh;
    }
  }
#pragma unroll
  for (int h = 0; h < Q; ++h) {
    float top = most[h];
#pragma unroll
    for (int step = LANES; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    const float factor = exp2f(most[h] - top);
    weight[h] *= factor;
#pragma unroll
    for (int step = LANES; step < 32; step *= 2) weight[h] += __shfl_xor_sync(~0u, weight[h], step);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      float x = sum[h][e] * factor;
#pragma unroll
      for (int step = LANES; step < 32; step *= 2) x += __shfl_xor_sync(~0u, x, step);
      if (place == 0) results[warp][h][at + e] = x;
    }
    if (lane == 0) {
      mosts[warp][h] = top;
      weights[warp][h] = weight[h];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < Q * D; i += WARPS * 32) {
    const int h = i / D, d = i % D;
    float top = mosts[0][h], total = 0.0f, result = 0.0f;
    for (int w = 1; w < WARPS; ++w) top = fmaxf(top, mosts[w][h]);
    for (int w = 0; w < WARPS; ++w) {
      const float factor = exp2f(mosts[w][h] - top);
      total += weights[w][h] * factor;
      result += results[w][h][d] * factor;
    }
    out[((size_t)row * N + head + h) * D + d] = (T)(result / total);
  }
"""

_DRAW_BODY = r"""
  constexpr int SPAN = 32 * E, SEGMENTS = (V + SPAN - 1) / SPAN, WARPS = THREADS / 32, EACH = (SEGMENTS + 31) / 32;
  __shared__ float sums[EACH * 32], warps[WARPS];
  const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const T* mine = logits + (size_t)row * V;
  const float scale = factor[0];
  struct alignas(E * sizeof(T)) Part { T at[E]; };

  float most = -INFINITY;
  for (int i = threadIdx.x * E; i < V; i += THREADS * E) {
    const Part part = *reinterpret_cast<const Part*>(mine + i);
#pragma unroll
    for (int e = 0; e < E; ++e) most = fmaxf(most, (float)part.at[e] * scale);
  }
  most = chuk::warp_max(most);
  if (lane == 0) warps[warp] = most;
  __syncthreads();
  most = chuk::warp_max(warps[lane % WARPS]);

  for (int segment = warp; segment < EACH * 32; segment += WARPS) {
    const int i = segment * SPAN + lane * E;
    float sum = 0.0f;
    if (i < V) {
      const Part part = *reinterpret_cast<const Part*>(mine + i);
#pragma unroll
      for (int e = 0; e < E; ++e) sum += __expf((float)part.at[e] * scale - most);
    }
    sum = chuk::warp_sum(sum);
    if (lane == 0) sums[segment] = sum;
  }
  __syncthreads();
  if (warp > 0) return;

  float own = 0.0f;
  for (int j = 0; j < EACH; ++j) own += sums[lane * EACH + j];
  float until = own;
  for (int step = 1; step < 32; step *= 2) {
    const float other = __shfl_up_sync(~0u, until, step);
    if (lane >= step) until += other;
  }
  const float total = __shfl_sync(~0u, until, 31), wanted = numbers[row] * total;
  const unsigned above = __ballot_sync(~0u, until > wanted), some = __ballot_sync(~0u, own > 0.0f);
  const int chosen = above & some ? __ffs(above & some) - 1 : some ? 31 - __clz(some) : 0;
  int segment = 0;
  float before = until - own;
  if (lane == chosen) {
    int last = lane * EACH;
    float last_before = before;
    for (int j = 0; j < EACH; ++j) {
      const float sum = sums[lane * EACH + j];
      if (sum > 0.0f) {
        last = lane * EACH + j;
        last_before = before;
        if (before + sum > wanted) break;
      }
      before += sum;
    }
    segment = last;
    before = last_before;
  }
  segment = __shfl_sync(~0u, segment, chosen);
  before = __shfl_sync(~0u, before, chosen);

  const int i = segment * SPAN + lane * E;
  float weight[E], scaled[E], inside = 0.0f;
#pragma unroll
  for (int e = 0; e < E; ++e) {
    scaled[e] = i < V ? (float)mine[i + e] * scale - most : -INFINITY;
    weight[e] = __expf(scaled[e]);
    inside += weight[e];
  }
  until = inside;
  for (int step = 1; step < 32; step *= 2) {
    const float other = __shfl_up_sync(~0u, until, step);
    if (lane >= step) until += other;
  }
  const unsigned over = __ballot_sync(~0u, before + until > wanted), any = __ballot_sync(~0u, inside > 0.0f);
  const int taker = over & any ? __ffs(over & any) - 1 : any ? 31 - __clz(any) : 0;
  if (lane == taker) {
    before += until - inside;
    int token = min(i, V - 1);
    float score = scaled[0];
    for (int e = 0; e < E; ++e) {
      if (weight[e] > 0.0f) {
        token = i + e;
        score = scaled[e];
        if (before + weight[e] > wanted) break;
      }
      before += weight[e];
    }
    tokens[row] = token;
    logps[row] = score - logf(total);
  }
"""

PRODUCT, ATTEND, DRAW = (_PRODUCT_HEADER, _PRODUCT_BODY), (_ATTEND_HEADER, _ATTEND_BODY), (_PACK, _DRAW_BODY)
