"""Names that differ between the supported releases of torch (2.11 to 2.15)."""

try:
    from torch.distributed._functional_collectives import all_gather_single_autograd
except ImportError:  # torch 2.11
    from torch.distributed._functional_collectives import all_gather_tensor_autograd as all_gather_single_autograd

__all__ = ["all_gather_single_autograd"]
