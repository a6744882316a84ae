// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the executor call. Each function copies its input to the device, launches,
// waits and copies the result back.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace lb::simt_kernels {

// ---------------------------------------------------------------- good.cu: blocks and grids

// {sum, sum of squared distances from the mean}
std::vector<double> sum_and_spread(const std::vector<float>& x);
std::vector<int> inclusive_scan(const std::vector<int>& x);
// How often each of 0 ... bins - 1 is in x.
std::vector<int> histogram(const std::vector<int>& x, int bins);
// [rows, columns] -> [columns, rows]
std::vector<float> transpose(const std::vector<float>& x, int rows, int columns);
// x / sum of x, in one cooperative grid
std::vector<double> normalize(const std::vector<float>& x, int blocks);
double last_block_sum(const std::vector<float>& x);
// [blocks, threads]: sums down the columns
std::vector<int> column_scan(const std::vector<int>& x, int blocks);
std::vector<float> scale_by_fours(const std::vector<float>& x, float factor);
// 2 * (x + 1) + 3, the terms from one stream and the factor from another
std::vector<int> two_streams(const std::vector<int>& x);
// [threads of the grid, 6]: blockIdx and threadIdx, z y x each
std::vector<int> indices(std::array<unsigned, 3> blocks, std::array<unsigned, 3> threads);

// ---------------------------------------------------------------- good_warps.cu: warps and atomics

// [numel, 6]: ballot, any, all, match_any, match_all and its predicate, within warps
std::vector<unsigned> votes(const std::vector<int>& x);
// [numel, 6]: add, min, max of int; and, or, xor of unsigned, within warps
std::vector<int> warp_reductions(const std::vector<int>& x);
// [numel, 4]: from lane + 3, up 1, down 2, xor 1, within `width` lanes
template <class T>
std::vector<T> shuffles(const std::vector<T>& x, int width);
// Sums in the lower half of each warp, maxima in the upper half.
std::vector<int> half_warps(const std::vector<int>& x);
// [numel, 3]: how many are odd, whether all are, whether any is
std::vector<int> barrier_votes(const std::vector<int>& x);
// [numel, 4]: popc, clz, ffs, brev
std::vector<unsigned> bits(const std::vector<unsigned>& x);
// What each addition found, then the total.
template <class T>
std::vector<T> atomic_add(const std::vector<T>& x);
// What each exchange found; then what is left of the exchanges, max, min, or, and, sum by CAS.
template <class T>
std::vector<T> atomic_others(const std::vector<T>& x);

// ---------------------------------------------------------------- planted.cu

// The names of the bugs that run_planted knows.
std::vector<std::string> planted();
// Runs the kernel with the bug, or the same one mended; 64 numbers in, 64 out. `queued`: twice, in
// a stream of its own, where a bug is reported by who waits for it.
std::vector<int> run_planted(const std::string& bug, bool mended, const std::vector<int>& in,
                             bool queued);

// ---------------------------------------------------------------- planted_host.cu

std::vector<int> use_after_free(bool mended, const std::vector<int>& in);
// 2 * (x + 1), if the second stream waits for the first
std::vector<int> missing_event(bool mended, const std::vector<int>& in);
void launch_empty(std::array<unsigned, 3> blocks, std::array<unsigned, 3> threads,
                  size_t shared_bytes, bool cooperative);
void copy_to_device(size_t bytes, size_t buffer_bytes);

}  // namespace lb::simt_kernels
