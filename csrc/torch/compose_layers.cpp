#include "common.h"

namespace {

using namespace blsgan;
using namespace blsgan::binding;

constexpr const char* kOp = "compose_layers";

void check(const Tensor& layers, const Tensor& masks, const Tensor& soft_tissue,
           double law, const Shape& shape) {
  check_size(kOp, "layers", layers, {shape.batch, shape.layers, shape.height, shape.width});
  check_soft_tissue(kOp, soft_tissue, shape);
  check_law(kOp, law);
  check_device(kOp, "masks", masks, layers);
  check_device(kOp, "soft_tissue", soft_tissue, layers);
}

Tensor compose_layers(const Tensor& layers, const Tensor& masks, const Tensor& soft_tissue,
                      double law) {
  const Shape shape = shape_of(kOp, masks);
  check(layers, masks, soft_tissue, law, shape);
  Tensor composed =
      empty(layers, {shape.batch, 1, shape.height, shape.width}, layers.scalar_type());
  if (composed.numel() == 0) return composed;
  const Input layers_in(layers, kOp, "layers"), masks_in(masks, kOp, "masks"),
      soft_in(soft_tissue, kOp, "soft_tissue");
  const ComposeLayers args{shape, layers_in, masks_in, soft_in,
                           output_view(composed, kOp, "composed"), law};
  run(kOp, layers, is_wide({layers}), args);
  return composed;
}

std::tuple<Tensor, Tensor> compose_layers_backward(const Tensor& grad_composed,
                                                   const Tensor& layers, const Tensor& masks,
                                                   const Tensor& soft_tissue, double law) {
  const Shape shape = shape_of(kOp, masks);
  check(layers, masks, soft_tissue, law, shape);
  check_size(kOp, "grad_composed", grad_composed, {shape.batch, 1, shape.height, shape.width});
  check_device(kOp, "grad_composed", grad_composed, layers);
  Tensor grad_layers = empty_as(layers, layers);
  Tensor grad_soft = soft_tissue_gradient(layers, soft_tissue);
  if (grad_layers.numel() == 0) return {grad_layers, grad_soft};
  const Input grad_in(grad_composed, kOp, "grad_composed"), layers_in(layers, kOp, "layers"),
      masks_in(masks, kOp, "masks"), soft_in(soft_tissue, kOp, "soft_tissue");
  const Partials partials(layers, item_count(shape));
  const ComposeLayersBackward args{shape,
                                   grad_in,
                                   layers_in,
                                   masks_in,
                                   soft_in,
                                   output_view(grad_layers, kOp, "grad_layers"),
                                   output_view(grad_soft, kOp, "grad_soft_tissue"),
                                   partials.data(),
                                   law};
  run(kOp, layers, is_wide({layers}), args);
  return {grad_layers, grad_soft};
}

void register_implementations(torch::stable::detail::StableLibrary& m) {
  m.impl("compose_layers", TORCH_BOX(&compose_layers));
  m.impl("compose_layers_backward", TORCH_BOX(&compose_layers_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(blsgan, m) {
  m.def(
      "compose_layers(Tensor layers, Tensor masks, Tensor soft_tissue, float law=0.0) -> Tensor");
  m.def(
      "compose_layers_backward(Tensor grad_composed, Tensor layers, Tensor masks, "
      "Tensor soft_tissue, float law=0.0) -> (Tensor, Tensor)");
}
BLSGAN_REGISTER_IMPLEMENTATIONS(register_implementations)
