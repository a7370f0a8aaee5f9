"""What the tests of products by oneDNN ask of the machine, and the precisions that it has there."""

import pytest
import torch

from ldm.modules import onednn

KINDS = [torch.float32, *([torch.bfloat16] if onednn.HAS_BFLOAT16 else [])]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
only_here = pytest.mark.skipif(not onednn.HAS_ONEDNN, reason="torch has no oneDNN on this machine")
with_bfloat16 = pytest.mark.skipif(not onednn.HAS_BFLOAT16, reason="this processor multiplies no bfloat16")
