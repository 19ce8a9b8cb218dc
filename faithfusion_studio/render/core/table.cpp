// The table of passes of one instruction set.
#include "kernels.h"

namespace ff {
namespace FF_ISA {

void add_projection(Kernels&);
void add_blend(Kernels&);
void add_blend_backward(Kernels&);
void add_project_backward(Kernels&);
void add_information_passes(Kernels&);
void add_coefficients(Kernels&);
void add_evidence(Kernels&);
void add_nats(Kernels&);

Kernels table() {
    Kernels k = {};
    add_projection(k);
    add_blend(k);
    add_blend_backward(k);
    add_project_backward(k);
    add_information_passes(k);
    add_coefficients(k);
    add_evidence(k);
    add_nats(k);
    return k;
}

}  // namespace FF_ISA
}  // namespace ff
