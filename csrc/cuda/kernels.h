// The CUDA kernels, as the module calls them: on the current device, in order on `stream` (a cudaStream_t). They return
// null, or what went wrong at the launch. Pointers are to device memory; `threads` of CellsParams means nothing here.
//
// "rows" are features with the channels of a cell or an audio side by side, filled up with zeros to `k_blocks` times 64
// bytes, aligned to 16 bytes. "real" is float, or double for float64. A matrix of slopes or cosines has one row a cell,
// one column an audio, and each row is filled up with zeros to a multiple of 8 columns. It is real, but of bfloat16
// rows it has 16 bits a number: bfloat16 slopes, Cosine16 (common.cuh). A matrix of alphas that the pooling caches for
// its backward pass is Cosine16 of float16 rows, too.
#pragma once
#include "../params.h"

namespace ssl_fast::cuda {

const char* cosine(const CellsParams& p, void* stream);  // backward where p.grad_out is given
const char* mean(const CellsParams& p, void* stream);
const void* probe_kernel();  // for device.cu, which tries to load it

// Features (of shape.images, channels and cells) and the same as rows.
struct PackParams {
  Shape shape;
  int64_t k_blocks;
  void *features, *packed, *inverse_norm;  // inverse_norm: real (N, cells), 1 / length
  bool tf32;                               // float32: rows are rounded to 11 bits
};
constexpr int kMostPacked = 4;  // tensors in one launch: the cells and the audios of two spaces
// Writes rows and inverse_norm of `count` tensors of one dtype; null where one is not wanted, rows only where channels
// come last.
const char* pack(const PackParams* features, int count, void* stream);
struct UnpackParams {
  PackParams rows;
  const void* gradient;  // like the rows, or real; multiplied by
  bool real_gradient;
  const void* scale;  // a real number on the device, null: 1
};
// features = gradients of rows - x (x . gradient) / |x|^2
const char* unpack(const UnpackParams* gradients, int count, void* stream);

// All pairs of audios with the cells of images.
struct PairsParams {
  DType dtype;  // of rows
  bool tf32;    // float32: products on tensor cores, of rows packed so
  int64_t audios, images, cells, k_blocks;
  const void* packed_audios;
  void* packed_cells;
  const void* audio_norm;  // real (M): 1 / length
  void* cell_norm;         // real (N * cells)
  // (N, channels, cells), which a resident plan packs while it loads them, or null. Then cell_norm and packed_cells
  // (null: not wanted) are written.
  const void* features;
  int64_t channels;
  bool normalized;  // else all lengths count as 1
};

// What a launch is planned for.
struct Device {
  int multiprocessors;
  int shared;  // bytes of shared memory that a block can opt in to
};
// Launch configuration of gemm_tile.cuh, chosen on the host.
struct Plan {
  bool resident;   // the cells of a CTA stay in shared memory; else they are streamed
  int64_t splits;  // CTAs that divide the audio tiles of one tile of cells among them
  int64_t blocks;  // CTAs of the grid
  int64_t shared;  // bytes of dynamic shared memory
  int64_t time;    // cost model: in halves of the time of one audio tile with one tile of cells
  int warp_groups() const { return resident ? 2 : 1; }  // that take turns at the tensor cores
};
// Of the addresses in p nothing is read. `device`: null for the current one.
Plan plan_of(const PairsParams& p, const Device* device);

// How many of at most `most` images of each of `spaces` at a time (more than half of it) keep the GPU busiest; p.images
// means nothing here.
int64_t good_chunk(PairsParams p, int64_t most, int spaces);

struct PoolParams {
  PairsParams pairs;
  Pooling pooling;
  double parameters[kPoolingParameters];
  void *scores, *residual;  // real (N, M); real, or int32 where the pooling is sparse
  const void* grad_scores;
  void* slopes;  // matrix
  void* cached;  // matrix of alphas, of the first cached_images; not of a sparse pooling
  int64_t cached_images;
};
// Writes alphas of the first images into `cached`, and pools those as rounded.
const char* pool_forward(const PoolParams& p, void* stream);
// slopes[n p, m] = grad[n, m] dS/dalpha[n, m, p] / (|v| |a|). Not of a sparse pooling.
const char* pool_slopes(const PoolParams& p, void* stream);
// The same of alphas that were cached: p.pairs has their images alone, and neither rows nor features are read.
const char* cached_slopes(const PoolParams& p, void* stream);
constexpr int kMostSpaces = 2;
// out[n p, m] = alpha[n, m, p], a matrix, of each of `count` spaces of the same sizes.
const char* alphas(const PairsParams* spaces, void* const* out, int count, void* stream);

// The gradients of scores that depend on one cell a pair, argmax (N, M), with respect to unit vectors, over their
// lengths. gradient, of the cells, is like packed_cells, or real; sums (M, channels of a row), real, are added to.
const char* max_backward_visual(const PairsParams& p, const void* grad_scores, const int32_t* argmax, void* gradient,
                                bool real_gradient, void* stream);
const char* max_backward_audio(const PairsParams& p, const void* grad_scores, const int32_t* argmax, void* sums,
                               void* stream);

// SLAVC's product, for a chunk of images. Whatever is neither a matrix nor `argmax` is real.
struct ProductChunk {
  DType dtype;
  Reduce reduce;
  Instances instances;
  double tau;
  int64_t images, audios, cells;
  const void *loc, *avc;              // matrices of cosines
  void *instance_top, *instance_log;  // (N * cells), or of all images (cells, M): the largest avc, tau log of the sum
  void *loc_top, *loc_log;            // (N, M): the largest loc, the log of the sum
  void *top, *log;                    // (N, M): the same of a + loc - the largest loc
  void* scores;                       // (N, M)
  int32_t* argmax;                    // (N, M), reduce = max only
  const void* grad_scores;            // (N, M)
  void* grad_sums;                    // like instance_top, instances = image only
  const void *loc_audio_norm, *loc_cell_norm, *avc_audio_norm, *avc_cell_norm;
  void *loc_slopes, *avc_slopes;  // matrices that product_slopes writes; may be loc and avc
};
// Whether it is the `first` or `last` chunk matters where instances are images.
const char* product_instances(const ProductChunk& p, bool first, bool last, void* stream);
const char* product_scores(const ProductChunk& p, void* stream);
const char* product_grad_sums(const ProductChunk& p, bool first, void* stream);  // instances = image only
const char* product_slopes(const ProductChunk& p, void* stream);

}  // namespace ssl_fast::cuda
