#include <algorithm>
#include <utility>
#include <vector>

#include "common.h"

namespace {

using namespace blsgan;
using namespace blsgan::binding;

constexpr const char* kOp = "synthesize_overlap";

std::tuple<Tensor, Tensor, Tensor, Tensor> synthesize_overlap(const Tensor& image,
                                                              const Tensor& masks,
                                                              const Tensor& background,
                                                              const Tensor& shift_upper,
                                                              const Tensor& shift_lower) {
  const Shape shape = shape_of(kOp, masks);
  check_size(kOp, "image", image, {shape.batch, 1, shape.height, shape.width});
  check_size(kOp, "soft_tissue_background", background,
             {shape.batch, 1, shape.height, shape.width});
  check_size(kOp, "shift_upper_px", shift_upper, {shape.batch});
  check_size(kOp, "shift_lower_px", shift_lower, {shape.batch});
  check_device(kOp, "masks", masks, image);
  check_device(kOp, "soft_tissue_background", background, image);
  check_device(kOp, "shift_upper_px", shift_upper, image);
  check_device(kOp, "shift_lower_px", shift_lower, image);
  const bool wide = is_wide({image});
  Tensor composed = empty_as(image, image);
  Tensor shifted_masks = empty_as(masks, masks);
  Tensor layers = empty(image, {shape.batch, shape.layers, shape.height, shape.width},
                        image.scalar_type());
  Tensor soft_tissue =
      reduced(image, {shape.batch}, wide ? ScalarType::Double : ScalarType::Float);
  if (image.numel() == 0) return {composed, shifted_masks, layers, soft_tissue};
  const Input image_in(image, kOp, "image"), masks_in(masks, kOp, "masks"),
      background_in(background, kOp, "soft_tissue_background"),
      upper_in(shift_upper, kOp, "shift_upper_px"), lower_in(shift_lower, kOp, "shift_lower_px");
  const int64_t rows = std::max(synthesis_items(shape), item_count(shape));
  const Partials partials(image, rows, kSynthesisSums);
  const Tensor planes =
      empty(image, {image.is_cuda() ? 2 * shape.batch * shape.pixels() : 0}, ScalarType::Byte);
  const SynthesizeOverlap args{shape,
                               image_in,
                               masks_in,
                               background_in,
                               upper_in,
                               lower_in,
                               output_view(composed, kOp, "composed"),
                               output_view(shifted_masks, kOp, "shifted_masks"),
                               output_view(layers, kOp, "layers"),
                               output_view(soft_tissue, kOp, "soft_tissue"),
                               partials.data(),
                               static_cast<uint8_t*>(planes.mutable_data_ptr())};
  run(kOp, image, wide, args);
  return {composed, shifted_masks, layers, soft_tissue};
}

std::tuple<Tensor, Tensor> synthesize_overlap_backward(
    const Tensor& grad_composed, const Tensor& grad_layers, const Tensor& grad_soft_tissue,
    const Tensor& shifted_masks, const Tensor& layers, const Tensor& soft_tissue,
    const Tensor& background, const Tensor& shift_upper, const Tensor& shift_lower,
    bool need_grad_image, bool need_grad_background) {
  const Shape shape = shape_of(kOp, shifted_masks);
  check_size(kOp, "grad_image", grad_composed, {shape.batch, 1, shape.height, shape.width});
  check_size(kOp, "grad_layers", grad_layers,
             {shape.batch, shape.layers, shape.height, shape.width});
  check_size(kOp, "grad_soft_tissue", grad_soft_tissue, {shape.batch});
  check_size(kOp, "layers", layers, {shape.batch, shape.layers, shape.height, shape.width});
  check_size(kOp, "soft_tissue", soft_tissue, {shape.batch});
  check_size(kOp, "soft_tissue_background", background,
             {shape.batch, 1, shape.height, shape.width});
  check_size(kOp, "shift_upper_px", shift_upper, {shape.batch});
  check_size(kOp, "shift_lower_px", shift_lower, {shape.batch});
  for (const auto& [name, tensor] :
       {std::pair<const char*, const Tensor&>{"grad_image", grad_composed},
        {"grad_layers", grad_layers},
        {"grad_soft_tissue", grad_soft_tissue},
        {"masks", shifted_masks},
        {"soft_tissue", soft_tissue},
        {"soft_tissue_background", background},
        {"shift_upper_px", shift_upper},
        {"shift_lower_px", shift_lower}}) {
    check_device(kOp, name, tensor, layers);
  }
  const std::vector<int64_t> plane{shape.batch, 1, shape.height, shape.width};
  Tensor grad_image =
      need_grad_image ? empty(layers, plane, layers.scalar_type()) : nothing(layers);
  Tensor grad_background = need_grad_background
                               ? empty(background, plane, background.scalar_type())
                               : nothing(background);
  if (layers.numel() == 0) return {grad_image, grad_background};
  const Input grad_composed_in(grad_composed, kOp, "grad_image"),
      grad_layers_in(grad_layers, kOp, "grad_layers"),
      grad_soft_in(grad_soft_tissue, kOp, "grad_soft_tissue"),
      layers_in(layers, kOp, "layers"), masks_in(shifted_masks, kOp, "masks"),
      soft_in(soft_tissue, kOp, "soft_tissue"),
      background_in(background, kOp, "soft_tissue_background"),
      upper_in(shift_upper, kOp, "shift_upper_px"), lower_in(shift_lower, kOp, "shift_lower_px");
  const int64_t rows = std::max(synthesis_items(shape), item_count(shape));
  const Partials partials(layers, rows, kSynthesisBackwardSums), shares(layers, shape.batch);
  const Tensor planes =
      empty(layers, {layers.is_cuda() ? 3 * shape.batch * shape.pixels() : 0}, ScalarType::Byte);
  const SynthesizeOverlapBackward args{shape,
                                       grad_composed_in,
                                       grad_layers_in,
                                       grad_soft_in,
                                       layers_in,
                                       masks_in,
                                       soft_in,
                                       background_in,
                                       upper_in,
                                       lower_in,
                                       output_view(grad_image, kOp, "grad_image"),
                                       output_view(grad_background, kOp, "grad_background"),
                                       partials.data(),
                                       shares.data(),
                                       static_cast<uint8_t*>(planes.mutable_data_ptr())};
  run(kOp, layers, is_wide({layers}), args);
  return {grad_image, grad_background};
}

void register_implementations(torch::stable::detail::StableLibrary& m) {
  m.impl("synthesize_overlap", TORCH_BOX(&synthesize_overlap));
  m.impl("synthesize_overlap_backward", TORCH_BOX(&synthesize_overlap_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(blsgan, m) {
  m.def(
      "synthesize_overlap(Tensor image, Tensor masks, Tensor soft_tissue_background, "
      "Tensor shift_upper_px, Tensor shift_lower_px) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "synthesize_overlap_backward(Tensor grad_image, Tensor grad_layers, "
      "Tensor grad_soft_tissue, Tensor masks, Tensor layers, Tensor soft_tissue, "
      "Tensor soft_tissue_background, Tensor shift_upper_px, Tensor shift_lower_px, "
      "bool need_grad_image, bool need_grad_background) -> (Tensor, Tensor)");
}
BLSGAN_REGISTER_IMPLEMENTATIONS(register_implementations)
