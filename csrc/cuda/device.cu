// CUDA runtime queries: the number of devices, and why kernels do not load on one. No kernels here.
#include <cuda_runtime.h>

#include <thread>

#include "device.h"
#include "kernels.h"

namespace ssl_fast::cuda {

const char* device_count(int* count) {
  *count = 0;
  cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // clears it, so that a missing driver does not fail the next launch
  int driver = 0;
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && !driver)
    return "there is no CUDA driver";
  return cudaGetErrorString(error);
}

LoadError load_error(int device) {
  LoadError found{};
  // On a thread of its own: the current device and the last error are per thread, and the caller's stay as they are.
  std::thread([&] {
    // so that lazy loading of the module does not invalidate a CUDA graph capture of another thread
    auto mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaFuncAttributes attributes;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, probe_kernel());
    if (error == cudaSuccess) return;
    found.name = cudaGetErrorName(error), found.text = cudaGetErrorString(error);
    cudaRuntimeGetVersion(&found.runtime);
    cudaDriverGetVersion(&found.driver);
  }).join();
  return found;
}

}  // namespace ssl_fast::cuda
