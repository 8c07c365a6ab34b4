#include "common.h"

namespace {

using namespace blsgan;
using namespace blsgan::binding;

constexpr const char* kOp = "reconstruction_loss";

void check(const Tensor& layers, const Tensor& masks, const Tensor& soft_tissue,
           const Tensor& image, double law, const Shape& shape) {
  check_size(kOp, "layers", layers, {shape.batch, shape.layers, shape.height, shape.width});
  check_soft_tissue(kOp, soft_tissue, shape);
  check_law(kOp, law);
  check_size(kOp, "image", image, {shape.batch, 1, shape.height, shape.width});
  check_device(kOp, "masks", masks, layers);
  check_device(kOp, "soft_tissue", soft_tissue, layers);
  check_device(kOp, "image", image, layers);
}

std::tuple<Tensor, Tensor> reconstruction_loss(const Tensor& layers, const Tensor& masks,
                                               const Tensor& soft_tissue, const Tensor& image,
                                               double law) {
  const Shape shape = shape_of(kOp, masks);
  check(layers, masks, soft_tissue, image, law, shape);
  const bool wide = is_wide({layers, image});
  const LossOutputs outputs(layers, 2, wide);
  if (layers.numel() == 0) return outputs.result();
  const Input layers_in(layers, kOp, "layers"), masks_in(masks, kOp, "masks"),
      soft_in(soft_tissue, kOp, "soft_tissue"), image_in(image, kOp, "image");
  const Partials partials(layers, item_count(shape), kRmseSums);
  const ReconstructionLoss args{
      shape,    layers_in,          masks_in,        soft_in,
      image_in, outputs.loss(kOp),  outputs.data(),  partials.data(), law};
  run(kOp, layers, wide, args);
  return outputs.result();
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_loss_backward(
    const Tensor& grad_loss, const Tensor& layers, const Tensor& masks, const Tensor& soft_tissue,
    const Tensor& image, const Tensor& statistics, bool need_grad_image, double law) {
  const Shape shape = shape_of(kOp, masks);
  check(layers, masks, soft_tissue, image, law, shape);
  check_loss_gradient(kOp, grad_loss, statistics, 2, layers);
  Tensor grad_layers = empty_as(layers, layers);
  Tensor grad_image = need_grad_image ? empty_as(image, image) : nothing(image);
  Tensor grad_soft = soft_tissue_gradient(layers, soft_tissue);
  if (layers.numel() == 0) return {grad_layers, grad_soft, grad_image};
  const Input grad_in(grad_loss, kOp, "grad_loss"), layers_in(layers, kOp, "layers"),
      masks_in(masks, kOp, "masks"), soft_in(soft_tissue, kOp, "soft_tissue"),
      image_in(image, kOp, "image");
  const Partials partials(layers, item_count(shape));
  const ReconstructionLossBackward args{shape,
                                        grad_in,
                                        layers_in,
                                        masks_in,
                                        soft_in,
                                        image_in,
                                        doubles(statistics),
                                        output_view(grad_layers, kOp, "grad_layers"),
                                        output_view(grad_soft, kOp, "grad_soft_tissue"),
                                        output_view(grad_image, kOp, "grad_image"),
                                        partials.data(),
                                        law};
  run(kOp, layers, is_wide({layers, image}), args);
  return {grad_layers, grad_soft, grad_image};
}

void register_implementations(torch::stable::detail::StableLibrary& m) {
  m.impl("reconstruction_loss", TORCH_BOX(&reconstruction_loss));
  m.impl("reconstruction_loss_backward", TORCH_BOX(&reconstruction_loss_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(blsgan, m) {
  m.def(
      "reconstruction_loss(Tensor layers, Tensor masks, Tensor soft_tissue, Tensor image, "
      "float law=0.0) -> (Tensor, Tensor)");
  m.def(
      "reconstruction_loss_backward(Tensor grad_loss, Tensor layers, Tensor masks, "
      "Tensor soft_tissue, Tensor image, Tensor statistics, bool need_grad_image, "
      "float law=0.0) -> (Tensor, Tensor, Tensor)");
}
BLSGAN_REGISTER_IMPLEMENTATIONS(register_implementations)
