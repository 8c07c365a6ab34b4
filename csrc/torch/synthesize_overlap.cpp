#include <algorithm>

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
  const DeviceBytes planes(image, 2 * shape.batch * shape.pixels());
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
                               planes.data()};
  run(kOp, image, wide, args);
  return {composed, shifted_masks, layers, soft_tissue};
}

void register_implementations(torch::stable::detail::StableLibrary& m) {
  m.impl("synthesize_overlap", TORCH_BOX(&synthesize_overlap));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(blsgan, m) {
  m.def(
      "synthesize_overlap(Tensor image, Tensor masks, Tensor soft_tissue_background, "
      "Tensor shift_upper_px, Tensor shift_lower_px) -> (Tensor, Tensor, Tensor, Tensor)");
}
BLSGAN_REGISTER_IMPLEMENTATIONS(register_implementations)
