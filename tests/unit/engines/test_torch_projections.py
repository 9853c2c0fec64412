import torch
from torch import nn

from llmhost.engines.torch.projections import PlainProjection


def test_a_plain_projection_computes_what_the_linear_layer_does() -> None:
    x = torch.randn(3, 8)
    for has_bias in (True, False):
        linear = nn.Linear(8, 5, bias=has_bias)
        assert PlainProjection(linear.weight, linear.bias)(x).equal(linear(x))


def test_a_plain_projection_says_what_it_keeps() -> None:
    weight, bias = torch.zeros(5, 8), torch.zeros(5)
    assert [one.shape for one in PlainProjection(weight).tensors] == [weight.shape]
    assert [one.shape for one in PlainProjection(weight, bias).tensors] == [
        weight.shape,
        bias.shape,
    ]
