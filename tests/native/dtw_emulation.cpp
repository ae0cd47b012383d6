// dtw.cu on the CPU, for ctypes. Build with this folder first on the include path: it holds another cuda_runtime.h.
#include "../../csrc/dtw.cu"

extern "C" void dtw_cuda(int64_t D, bool euclidean, float scale, bool root, int64_t radius, double fraction, double slope,
                         bool open_begin, bool open_end, int normalize, int pairs, const float* x, const float* y,
                         const int64_t* tables, int64_t x_count, int64_t y_count, const float* costs, int64_t cost_size,
                         int64_t cost_columns, int64_t count, int64_t chunk, unsigned long long* next, double* border,
                         int* border_cells, int64_t longest, int64_t blocks, float* out) {
  const vsim::DtwOptions options{D, euclidean, scale, root, radius, fraction, slope, open_begin, open_end,
                                 static_cast<vsim::DtwNormalize>(normalize)};
  vsim::dtw_cuda({static_cast<vsim::DtwPairs>(pairs), x, y, tables, x_count, y_count, costs, cost_size, cost_columns, count,
                  chunk, next, border, border_cells, longest, blocks, out}, options, nullptr);
}
