"""The transformer half of TransUNet's encoder: ViT-B on the 1/16 map (notes, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 768

_HEADS = 12
_HIDDEN = 3072
_DROPOUT = 0.1
_EPS = 1e-6


class Layer(nn.Module):
    """Pre-norm attention with 12 heads and MLP, each with a residual, on tokens (B, N, 768)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, eps=_EPS)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH, eps=_EPS)
        self.fc1 = nn.Linear(WIDTH, _HIDDEN)
        self.fc2 = nn.Linear(_HIDDEN, WIDTH)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attended(self.attention_norm(tokens))
        hidden = self.dropout(F.gelu(self.fc1(self.mlp_norm(tokens))))
        return tokens + self.dropout(self.fc2(hidden))

    def _attended(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            project(tokens).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """Every position of the 1/16 map is a token; learned positions from zero; no class token.

    Args:
        side: of the map, in positions; N = side * side tokens.
        layers: how many.
    """

    def __init__(self, side: int, layers: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(1024, WIDTH, 1)
        self.position = nn.Parameter(torch.zeros(1, side * side, WIDTH))
        self.dropout = nn.Dropout(_DROPOUT)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1024, side, side) -> (B, 768, side, side)."""
        size = (x.shape[-2], x.shape[-1])
        tokens = self.embedding(x).flatten(2).transpose(1, 2)
        tokens = self.dropout(tokens + self.position)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(-1, size)
