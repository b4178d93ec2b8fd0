"""Threads may predict with one network at a time, in whatever mode it is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from intrasense_fast.inference import predict_probabilities
from intrasense_fast.networks import build_network


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_two_threads_predict_with_one_network(training: bool, seed: int) -> None:
    torch.manual_seed(seed)
    net = build_network("unet", widths=[2, 2, 2, 2, 4]).train(training)
    frozen = next(module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
    frozen.eval()
    modes = [module.training for module in net.modules()]
    rng = np.random.default_rng(seed)
    images = [rng.random((40, 48), dtype=np.float32) for _ in range(24)]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    wanted = [predict_probabilities(net, [image], 32)[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: predict_probabilities(net, [image], 32)[0], images))
    for one, other in zip(found, wanted, strict=True):
        assert np.isfinite(one).all() and np.array_equal(one, other)
    # Had one of them seen the training mode, BatchNorm would have learnt from it.
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
