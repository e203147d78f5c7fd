"""DoRA linear layers with PEFT's parameters and results, computed with a fraction of PEFT's work.

In every call of every adapted layer, PEFT recomputes the norm of the adapted weight, which changes only with the
weights, from a float32 copy of the weight and a product of two full matrices. Here the norm comes from small products,
once per layer within `kept_norms`; the input is not copied to float32; and without dropout on the input there is one
frozen product instead of two. The custom functions write in place, so that tensors as wide as the output are read and
written as rarely as eager operators allow, and keep the gradients' sums in float32.
"""

from vlm2vec.dora.layer import DoraLinear, install_dora, kept_norms
from vlm2vec.dora.norm import WeightNorm

__all__ = ["DoraLinear", "WeightNorm", "install_dora", "kept_norms"]
