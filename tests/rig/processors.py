"""Imitates different CPUs: `ATEN_CPU_CAPABILITY=default` or `avx2` selects older kernels of all libraries."""

from __future__ import annotations

import os

# torch's own setting does not reach the libraries that it multiplies with; half of it at a time does not even work:
# bfloat16 attention asks oneDNN what the processor can do and then lacks the kernel.
_SETTINGS = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
}


def imitate_processor() -> None:
    """Call it before torch and NumPy are imported; ranks inherit it."""
    for name, value in _SETTINGS.get(os.environ.get("ATEN_CPU_CAPABILITY", ""), {}).items():
        os.environ.setdefault(name, value)
