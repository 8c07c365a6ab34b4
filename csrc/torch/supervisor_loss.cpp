#include "common.h"

namespace {

using namespace blsgan;
using namespace blsgan::binding;

constexpr const char* kOp = "supervisor_loss";

SupervisorTarget target_of(int64_t target) {
  STD_TORCH_CHECK(target >= 0 && target <= 2, "blsgan::", kOp, ": target must be 0, 1 or 2");
  return static_cast<SupervisorTarget>(target);
}

void check(const Tensor& logits, const Tensor& masks, const Shape& shape) {
  check_size(kOp, "logits", logits, {shape.batch, 2 * shape.layers, shape.height, shape.width});
  check_device(kOp, "masks", masks, logits);
}

std::tuple<Tensor, Tensor> supervisor_loss(const Tensor& logits, const Tensor& masks,
                                           int64_t target, bool hybrid) {
  const Shape shape = shape_of(kOp, masks);
  check(logits, masks, shape);
  const bool wide = is_wide({logits});
  const LossOutputs outputs(logits, kSupervisorStatistics, wide);
  if (logits.numel() == 0) return outputs.result();
  const Input logits_in(logits, kOp, "logits"), masks_in(masks, kOp, "masks");
  const Partials partials(logits, item_count(shape), kSupervisorSums);
  const SupervisorLoss args{shape,           logits_in, masks_in,
                            target_of(target), hybrid,    outputs.loss(kOp),
                            outputs.data(),  partials.data()};
  run(kOp, logits, wide, args);
  return outputs.result();
}

Tensor supervisor_loss_backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& masks,
                                const Tensor& statistics, int64_t target) {
  const Shape shape = shape_of(kOp, masks);
  check(logits, masks, shape);
  check_loss_gradient(kOp, grad_loss, statistics, kSupervisorStatistics, logits);
  Tensor grad_logits = empty_as(logits, logits);
  if (logits.numel() == 0) return grad_logits;
  const Input grad_in(grad_loss, kOp, "grad_loss"), logits_in(logits, kOp, "logits"),
      masks_in(masks, kOp, "masks");
  const SupervisorLossBackward args{shape,
                                    grad_in,
                                    logits_in,
                                    masks_in,
                                    target_of(target),
                                    doubles(statistics),
                                    output_view(grad_logits, kOp, "grad_logits")};
  run(kOp, logits, is_wide({logits}), args);
  return grad_logits;
}

void register_implementations(torch::stable::detail::StableLibrary& m) {
  m.impl("supervisor_loss", TORCH_BOX(&supervisor_loss));
  m.impl("supervisor_loss_backward", TORCH_BOX(&supervisor_loss_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(blsgan, m) {
  m.def(
      "supervisor_loss(Tensor logits, Tensor masks, int target, bool hybrid) -> (Tensor, Tensor)");
  m.def(
      "supervisor_loss_backward(Tensor grad_loss, Tensor logits, Tensor masks, Tensor statistics, "
      "int target) -> Tensor");
}
BLSGAN_REGISTER_IMPLEMENTATIONS(register_implementations)
