// What the module asks of the CUDA side. Functions return null, or a message with static lifetime.
#pragma once

namespace ssl_fast::cuda {

const char* device_count(int* count);

struct LoadError {
  const char *name, *text;  // null: none
  int runtime, driver;      // 1000 * major + 10 * minor of CUDA; what the driver supports, 0 without a driver
};
// Why no kernel of the module loads on this device: none was built for it, the driver is too old, ...
LoadError load_error(int device);

}  // namespace ssl_fast::cuda
