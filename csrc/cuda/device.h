// What the module asks of the CUDA side. Functions return null, or a message with static lifetime.
#pragma once

namespace ssl_fast::cuda {

const char* device_count(int* count);

}  // namespace ssl_fast::cuda
