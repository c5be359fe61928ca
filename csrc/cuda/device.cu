#include "device.h"

#include <cuda_runtime.h>

namespace ssl_fast::cuda {

const char* device_count(int* count) {
  *count = 0;
  cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // a missing driver must not haunt the next call
  return cudaGetErrorString(error);
}

}  // namespace ssl_fast::cuda
