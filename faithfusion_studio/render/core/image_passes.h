// Passes over images that call each other, once per instruction set.
#pragma once
#include "image.h"

namespace ff {
namespace FF_ISA {

double compare(const ImagePlanes&, int threads);   // image_kernels.cpp: the image loss, on planes
double view_loss(const ViewLoss&, int threads);    // view_kernels.cpp: all terms of a training view

}  // namespace FF_ISA
}  // namespace ff
