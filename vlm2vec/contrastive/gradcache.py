"""Makes the installed `GradCache` package importable.

The published wheel (GradCache 0.0.1) installs the package as `gradcache`, but its modules import each other as
`grad_cache`, the name in its source repository, so that `import gradcache.grad_cache` fails. Registering the installed
package under the second name is enough.
"""

from __future__ import annotations

import sys

import gradcache

sys.modules.setdefault("grad_cache", gradcache)

from gradcache.context_managers import RandContext  # noqa: E402
from gradcache.grad_cache import GradCache  # noqa: E402

__all__ = ["GradCache", "RandContext"]
