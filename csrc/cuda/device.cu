#include <cuda_runtime.h>

#include <thread>

#include "device.h"
#include "kernels.h"

namespace ssl_fast::cuda {

const char* device_count(int* count) {
  *count = 0;
  cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // a missing driver must not haunt the next call
  int driver = 0;
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && !driver)
    return "there is no CUDA driver";
  return cudaGetErrorString(error);
}

LoadError load_error(int device) {
  LoadError found{};
  // In a thread of its own: current device and last error belong to a thread, and those of the caller are left alone.
  std::thread([&] {
    auto mode = cudaStreamCaptureModeRelaxed;  // loading must not break a CUDA graph that another thread captures
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaFuncAttributes attributes;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, a_kernel());
    if (error == cudaSuccess) return;
    found.name = cudaGetErrorName(error), found.text = cudaGetErrorString(error);
    cudaRuntimeGetVersion(&found.runtime);
    cudaDriverGetVersion(&found.driver);
  }).join();
  return found;
}

}  // namespace ssl_fast::cuda
