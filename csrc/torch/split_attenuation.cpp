#include "common.h"

namespace {

using namespace blsgan;
using namespace blsgan::binding;

constexpr const char* kOp = "split_attenuation";

void check(const Tensor& share_logits, const Tensor& image, const Tensor& masks,
           const Tensor& soft_tissue, double law, const Shape& shape) {
  check_size(kOp, "share_logits", share_logits,
             {shape.batch, shape.layers, shape.height, shape.width});
  check_size(kOp, "image", image, {shape.batch, 1, shape.height, shape.width});
  check_soft_tissue(kOp, soft_tissue, shape);
  check_law(kOp, law);
  check_device(kOp, "image", image, share_logits);
  check_device(kOp, "masks", masks, share_logits);
  check_device(kOp, "soft_tissue", soft_tissue, share_logits);
}

Tensor split_attenuation(const Tensor& share_logits, const Tensor& image, const Tensor& masks,
                         const Tensor& soft_tissue, double law) {
  const Shape shape = shape_of(kOp, masks);
  check(share_logits, image, masks, soft_tissue, law, shape);
  Tensor layers =
      empty(image, {shape.batch, shape.layers, shape.height, shape.width}, image.scalar_type());
  if (layers.numel() == 0) return layers;
  const Input logits_in(share_logits, kOp, "share_logits"), image_in(image, kOp, "image"),
      masks_in(masks, kOp, "masks"), soft_in(soft_tissue, kOp, "soft_tissue");
  const SplitAttenuation args{shape,    logits_in, image_in,
                              masks_in, soft_in,   output_view(layers, kOp, "layers"),
                              law};
  run(kOp, share_logits, is_wide({share_logits, image}), args);
  return layers;
}

std::tuple<Tensor, Tensor, Tensor> split_attenuation_backward(
    const Tensor& grad_layers, const Tensor& share_logits, const Tensor& image,
    const Tensor& masks, const Tensor& soft_tissue, bool need_grad_image, double law) {
  const Shape shape = shape_of(kOp, masks);
  check(share_logits, image, masks, soft_tissue, law, shape);
  check_size(kOp, "grad_layers", grad_layers,
             {shape.batch, shape.layers, shape.height, shape.width});
  check_device(kOp, "grad_layers", grad_layers, share_logits);
  Tensor grad_logits = empty_as(share_logits, share_logits);
  Tensor grad_image = need_grad_image ? empty_as(image, image) : nothing(image);
  Tensor grad_soft = soft_tissue_gradient(share_logits, soft_tissue);
  if (grad_logits.numel() == 0) return {grad_logits, grad_image, grad_soft};
  const Input grad_in(grad_layers, kOp, "grad_layers"),
      logits_in(share_logits, kOp, "share_logits"), image_in(image, kOp, "image"),
      masks_in(masks, kOp, "masks"), soft_in(soft_tissue, kOp, "soft_tissue");
  const Partials partials(share_logits, item_count(shape));
  const SplitAttenuationBackward args{shape,
                                      grad_in,
                                      logits_in,
                                      image_in,
                                      masks_in,
                                      soft_in,
                                      output_view(grad_logits, kOp, "grad_share_logits"),
                                      output_view(grad_image, kOp, "grad_image"),
                                      output_view(grad_soft, kOp, "grad_soft_tissue"),
                                      partials.data(),
                                      law};
  run(kOp, share_logits, is_wide({share_logits, image}), args);
  return {grad_logits, grad_image, grad_soft};
}

void register_implementations(torch::stable::detail::StableLibrary& m) {
  m.impl("split_attenuation", TORCH_BOX(&split_attenuation));
  m.impl("split_attenuation_backward", TORCH_BOX(&split_attenuation_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(blsgan, m) {
  m.def(
      "split_attenuation(Tensor share_logits, Tensor image, Tensor masks, Tensor soft_tissue, "
      "float law=0.0) -> Tensor");
  m.def(
      "split_attenuation_backward(Tensor grad_layers, Tensor share_logits, Tensor image, "
      "Tensor masks, Tensor soft_tissue, bool need_grad_image, float law=0.0) -> "
      "(Tensor, Tensor, Tensor)");
}
BLSGAN_REGISTER_IMPLEMENTATIONS(register_implementations)
