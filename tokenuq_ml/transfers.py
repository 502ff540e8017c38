"""Copies between host and device that neither waits for.

`tensor.to("cuda")` from ordinary memory, and every `.item()`, `.tolist()` and `.cpu()`, wait until the device has
computed all that was asked of it before. Copies through pinned memory do not. On other devices than CUDA's, and on a
CPU, these functions copy as usual.
"""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Return the tensor on a device, by a copy through pinned memory if the device is a GPU of CUDA."""
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        # PyTorch keeps the pinned copy until the device has read it.
        return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
    return tensor.to(device)


class HostCopy:
    """Copies of tensors on the host, on their way while the device and the host work on.

    Args:
        *tensors: on one device; must not be changed in place before `wait` has returned.
    """

    def __init__(self, *tensors: Tensor):
        self._tensors, self._event = [tensor.detach() for tensor in tensors], None
        if tensors and tensors[0].device.type == "cuda" and torch.cuda.is_available():
            self._tensors = [
                torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in self._tensors
            ]
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """Return the tensors on the host, once what computes them is done; later work is not waited for."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.cpu() for tensor in self._tensors]
