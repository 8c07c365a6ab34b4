#include "common.h"

namespace {

using namespace blsgan;
using namespace blsgan::binding;

constexpr const char* kOp = "layer_loss";

void check(const Tensor& layers, const Tensor& true_layers, const Tensor& masks,
           const Shape& shape) {
  check_size(kOp, "layers", layers, {shape.batch, shape.layers, shape.height, shape.width});
  check_size(kOp, "true_layers", true_layers,
             {shape.batch, shape.layers, shape.height, shape.width});
  check_device(kOp, "true_layers", true_layers, layers);
  check_device(kOp, "masks", masks, layers);
}

std::tuple<Tensor, Tensor> layer_loss(const Tensor& layers, const Tensor& true_layers,
                                      const Tensor& masks) {
  const Shape shape = shape_of(kOp, masks);
  check(layers, true_layers, masks, shape);
  const bool wide = is_wide({layers, true_layers});
  const LossOutputs outputs(layers, 2, wide);
  if (layers.numel() == 0) return outputs.result();
  const Input layers_in(layers, kOp, "layers"), truth_in(true_layers, kOp, "true_layers"),
      masks_in(masks, kOp, "masks");
  const Partials partials(layers, item_count(shape), kRmseSums);
  const LayerLoss args{shape,    layers_in,         truth_in,
                       masks_in, outputs.loss(kOp), outputs.data(),
                       partials.data()};
  run(kOp, layers, wide, args);
  return outputs.result();
}

std::tuple<Tensor, Tensor> layer_loss_backward(const Tensor& grad_loss, const Tensor& layers,
                                               const Tensor& true_layers, const Tensor& masks,
                                               const Tensor& statistics,
                                               bool need_grad_true_layers) {
  const Shape shape = shape_of(kOp, masks);
  check(layers, true_layers, masks, shape);
  check_loss_gradient(kOp, grad_loss, statistics, 2, layers);
  Tensor grad_layers = empty_as(layers, layers);
  Tensor grad_true = need_grad_true_layers ? empty_as(true_layers, true_layers)
                                           : nothing(true_layers);
  if (layers.numel() == 0) return {grad_layers, grad_true};
  const Input grad_in(grad_loss, kOp, "grad_loss"), layers_in(layers, kOp, "layers"),
      truth_in(true_layers, kOp, "true_layers"), masks_in(masks, kOp, "masks");
  const LayerLossBackward args{shape,
                               grad_in,
                               layers_in,
                               truth_in,
                               masks_in,
                               doubles(statistics),
                               output_view(grad_layers, kOp, "grad_layers"),
                               output_view(grad_true, kOp, "grad_true_layers")};
  run(kOp, layers, is_wide({layers, true_layers}), args);
  return {grad_layers, grad_true};
}

void register_implementations(torch::stable::detail::StableLibrary& m) {
  m.impl("layer_loss", TORCH_BOX(&layer_loss));
  m.impl("layer_loss_backward", TORCH_BOX(&layer_loss_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(blsgan, m) {
  m.def("layer_loss(Tensor layers, Tensor true_layers, Tensor masks) -> (Tensor, Tensor)");
  m.def(
      "layer_loss_backward(Tensor grad_loss, Tensor layers, Tensor true_layers, Tensor masks, "
      "Tensor statistics, bool need_grad_true_layers) -> (Tensor, Tensor)");
}
BLSGAN_REGISTER_IMPLEMENTATIONS(register_implementations)
