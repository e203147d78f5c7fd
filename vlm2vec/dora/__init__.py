"""DoRA linear layers: PEFT's parameters and results at a fraction of PEFT's work.

PEFT recomputes in every call of every adapted layer what changes only with the weights: the norm of the adapted weight,
from a float32 copy of the weight and the product of two full matrices. Here the norm comes from small products, once
per layer within `kept_norms`; the input is not copied to float32; and where no dropout precedes the frozen product,
there is one frozen product instead of two. Between the products, tensors as wide as the output are read and written as
seldom as eager operators allow: the custom functions here write in place and keep the gradients' sums in float32.
"""

from vlm2vec.dora.layer import DoraLinear, install_dora, kept_norms
from vlm2vec.dora.norm import WeightNorm

__all__ = ["DoraLinear", "WeightNorm", "install_dora", "kept_norms"]
