// What crosses from Python to a kernel: plain structs, passed by value. Counts are in elements.
#pragma once
#include <cstdint>

namespace ssl_fast {

enum class DType : int { float32, bfloat16, float16, float64 };
enum class Pooling : int;              // listed in pooling.h
constexpr int kPoolingParameters = 4;  // at most
enum class Reduce : int { sum, max };
enum class Instances : int { audio, image };

// Vectors shorter than this are zero vectors (ssl_fast/ops/reference.py).
constexpr double kShortest = 1e-12, kShortestFloat16 = 0x1p-14;

// Images (N, C, cells) or, channels last, (N, cells, C); audios (M, C), or of `tokens` a clip (M / tokens, C, tokens).
// All of one dtype. Of all_channels = C, a kernel reads, and writes gradients of, `channels` from first_channel on: a
// head. Heads and tokens are taken by the CPU's `similarity`, heads by CUDA's `pack` and `unpack`; elsewhere there is
// one of each.
// "real" below is float, or double for float64 inputs.
// Without `normalized`, all norms count as 1: what is called a cosine, or alpha, is then a dot product.
struct Shape {
  DType dtype;
  bool channels_last;
  int64_t images, audios, channels, cells;
  bool normalized;
  int64_t all_channels, first_channel, tokens;
};

// One space of cosines: alpha[n,m,p]. Gradients that nobody wants are null.
struct Features {
  const void* visual;
  const void* audio;
  void* inverse_norm;   // real (N, cells): 1 / |visual|, written by the forward pass
  void* cached_alphas;  // real (cached_images, padded M * cells): alpha of the first images, in the engine's own order
  void* grad_visual;    // like visual
  void* grad_audio;     // like audio
};

// Cross-entropy of scores (N, K), of rows and of columns (csrc/cpu/cross_entropy.h); real is double with float64.
struct CrossEntropyParams {
  bool float64, of_rows, of_columns;
  int64_t rows, columns;  // N, K; of_columns: K >= N
  double tau, margin;
  const int64_t* positives;  // (N) or null: the diagonal, as for columns
  const void* scores;        // real (N, K)
  const void* maps;          // real (N, cells) or null: a background is one more negative of each row
  int64_t cells;
  double epsilon, beta;
  void* loss;         // real (1)
  void* grad_scores;  // real (N, K) or null
  void* grad_maps;    // real (N, cells)
  int threads;
};

struct SimilarityParams {
  Shape shape;
  Features features;
  Pooling pooling;
  double parameters[kPoolingParameters];
  int64_t cached_images;     // the first ones, whose alpha is cached for the backward pass
  const int64_t* positives;  // (N) or null: the audio whose map is wanted
  void* positive_map;        // real (N, cells): alpha[n, positives[n], :]
  // Forward pass of Pooling::max: the other direction of late interaction, the largest alpha of the `clip` audios of a
  // clip for each cell, and the number of the first that attains it. clip = 0: not wanted.
  int64_t clip;
  void* clip_scores;         // real (M / clip, N, cells)
  int32_t* clip_argmax;      // (M / clip, N, cells)
  void* audio_inverse_norm;  // real (M): 1 / |audio|
  void* scores;              // real (N, M)
  void* residual;            // (N, M): of the pooling; real, or int32 where it is sparse
  const void* grad_scores;   // real (N, M)
  const void* grad_map;      // real (N, cells) or null
  // Backward pass: of a loss of the rows of S, from one pass over the products. S, residual, 1 / |v| and positive_map
  // are then computed, and grad_scores and grad_map, gradients of the loss, image by image; nothing is cached. Null:
  // all of them are read.
  const CrossEntropyParams* row_loss;
  int threads;
};

struct ProductParams {
  Shape shape;
  Features loc, avc;
  double tau;
  Reduce reduce;
  Instances instances;
  int64_t cached_images;
  void* scores;  // real (N, M): log sum_p (or max_p) of the product of both softmaxes
  // real (4, N, M), of a pair: the largest loc, log sum_p exp((loc - largest) / tau); and the same of loc plus a, tau
  // times the log of the softmax over instances
  void* pair_norm;
  // real (2, N, cells), or (2, padded M, cells) for instances = image: the largest avc, tau log sum exp((avc - it) /
  // tau)
  void* instance_norm;
  void* argmax;  // int32 (N, M), reduce = max only
  const void* grad_scores;
  const CrossEntropyParams* row_loss;  // as of SimilarityParams, for instances = audio
  int threads;
};

// Paired: audio (N, C). With a null `audio`, the mean of the unit vectors of each image.
struct CellsParams {
  Shape shape;
  const void* visual;
  const void* audio;
  const void* weight;  // mean: real (means, N, cells), or null: 1 / cells
  int64_t means;       // of an image, each with weights of its own; CUDA: 1
  void* inverse_norm;  // real (N, cells)
  void* out;           // map: real (N, cells); mean: real (means, N, C)
  const void* grad_out;
  void* grad_visual;
  void* grad_audio;  // map only: real (N, C), with respect to the raw audio
  int threads;
};

// Evaluation. Images have `maps` low-resolution maps each, the first of which is compared with the ground truth.
struct MapShape {
  int64_t images, maps, cell_rows, cell_columns, rows, columns;
};

// Interpolation along one axis: pixel i is a sum of `taps` cells from first[i] on.
struct Axis {
  const int64_t* first;
  const double* weight;  // (pixels, taps)
  int64_t taps;
};
struct Resize {
  Axis rows, columns;
};

enum class RuleKind : int { fraction, truth, value };
enum class Comparison : int { exact, above, at_least };
struct MapRule {
  RuleKind kind;
  Comparison comparison;
  int64_t count;  // pixels, of `fraction`, and of `truth` where there is none; exact, or to the order statistic
  float value;
};

struct MapParams {
  MapShape shape;
  const float* low;   // (images, maps, cell rows, cell columns)
  const void* truth;  // (images, rows, columns): weights, float32; or bytes 0 and 1
  bool bytes;
  Resize resize[2];     // of the first map, and of the others
  const MapRule* rule;  // (rules), for the first map
  int64_t rules;
  float value;       // of `shared`
  double* hit;       // (images, rules): weight under the prediction
  double* outside;   // (images, rules): predicted pixels without ground truth
  double* weight;    // (images): sum of weights
  int64_t* objects;  // (images): pixels with ground truth; -1, and nothing else, where a weight is not in [0, 1]
  int64_t* shared;   // (images, maps, maps) or null: pixels above `value` in both maps
  int threads;
};

}  // namespace ssl_fast
