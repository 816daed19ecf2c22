"""What goes to a device, and how."""

from unittest.mock import Mock

import torch

from cast.train.batch import send


def test_cuda_gets_pinned_memory_and_nothing_waits():
    tensor = Mock()
    assert send(tensor, torch.device("cuda", 1)) is tensor.pin_memory().to.return_value
    tensor.pin_memory().to.assert_called_once_with(torch.device("cuda", 1), non_blocking=True)
    tensor.to.assert_not_called()


def test_values_arrive(device):
    sent = send(torch.arange(5), torch.device(device))
    assert sent.device.type == device
    assert sent.tolist() == [0, 1, 2, 3, 4]
