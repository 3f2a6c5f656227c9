// What torch asks of a GPU itself: that there is one, and a device to guard. Nothing here computes. With -DPRETEND_MPS an Apple GPU.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

namespace {

template <class Interface>
struct Hooks : Interface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

#ifndef PRETEND_MPS
struct CUDAHooks : Hooks<at::CUDAHooksInterface> {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};
using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
#else
struct MPSHooks : Hooks<at::MPSHooksInterface> {
  bool hasMPS() const override { return true; }
  bool isOnMacOSorNewer(unsigned, unsigned) const override { return true; }
  void deviceSynchronize() const override {}
};
using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::MPS>;
#endif

}  // namespace

#ifndef PRETEND_MPS
namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
#else
namespace at {
REGISTER_MPS_HOOKS(MPSHooks);
}
C10_REGISTER_GUARD_IMPL(MPS, Guard);
#endif
