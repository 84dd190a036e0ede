"""CUDA C++ of the kernels for attention and draws, compiled by MLX when first used: (helpers, body)
of each. Upper-case names that no helper declares are constants which the caller sets."""

from __future__ import annotations

PACK = r"""
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

_ATTEND_HEADER = (
    PACK
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

ATTEND, DRAW = (_ATTEND_HEADER, _ATTEND_BODY), (PACK, _DRAW_BODY)
