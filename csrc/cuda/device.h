// CUDA runtime queries of the module. Error messages have static lifetime; null means no error.
#pragma once

namespace ssl_fast::cuda {

// Writes the number of devices, 0 on error. Returns the error message or null.
const char* device_count(int* count);

struct LoadError {
  const char *name, *text;  // cudaGetErrorName and cudaGetErrorString; null: no error
  int runtime, driver;      // CUDA version, 1000 * major + 10 * minor; driver: the latest it supports, 0 without one
};
// Error of loading a kernel of the module on this device: no kernel image for its architecture, driver too old, ...
LoadError load_error(int device);

}  // namespace ssl_fast::cuda
