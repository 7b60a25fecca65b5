"""Blocks of known networks, written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_mlp(prove: Prove) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    prove(model, {"1": "6 exact"})


def test_inverted_residual(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(h + net.block(h))

    block = nn.Sequential(
        *(conv(4, 6), nn.BatchNorm2d(6), nn.ReLU6()),
        *(conv(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU6()),
        *(conv(6, 4), nn.BatchNorm2d(4)),
    )
    prove(forward, {"stem": "4 exact", "block.0": "6 exact"}, stem=conv(3, 4), block=block, head=conv(4, 2))


def test_convnext_block(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        inner = net.norm(net.depth(h).permute(0, 2, 3, 1))
        inner = net.down(F.gelu(net.up(inner))).permute(0, 3, 1, 2)
        return net.head(h + net.scale * inner)

    prove(
        forward,
        {"stem": "4 prune-only:channel-norm", "up": "6 exact"},
        stem=conv(3, 4),
        depth=conv(4, 4, 7, groups=4),
        norm=nn.LayerNorm(4),
        up=nn.Linear(4, 6),
        down=nn.Linear(6, 4),
        scale=nn.Parameter(torch.rand(4, 1, 1)),
        head=conv(4, 2),
    )


def test_self_attention_written_out(prove: Prove) -> None:
    """Queries and keys are contracted with each other; the values' channels are free, head by head alike."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        weights = (net.query(tokens) @ net.key(tokens).transpose(1, 2) / 2.0).softmax(-1)
        return net.head(net.out(weights @ net.value(tokens)).mean(1))

    prove(
        forward,
        {
            "stem": "4 exact",
            "query": "4 frozen:bilinear",
            "key": "4 frozen:bilinear",
            "value": "5 exact",
            "out": "3 exact",
        },
        stem=conv(3, 4, stride=2),
        query=nn.Linear(4, 4),
        key=nn.Linear(4, 4),
        value=nn.Linear(4, 5),
        out=nn.Linear(5, 3),
        head=nn.Linear(3, 2),
    )


def test_self_attention_with_heads(prove: Prove) -> None:
    """The program lays the heads' channels out by the number of the stream's, which a rewrite writes down."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        n, length, width = tokens.shape
        query, key, value = net.qkv(tokens).reshape(n, length, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, length, width)
        tokens = tokens + net.out(mixed)
        return net.head((tokens + net.down(F.gelu(net.up(tokens)))).mean(1))

    prove(
        forward,
        {"stem": "4 exact", "qkv": "2 frozen:attention", "up": "6 exact"},
        stem=conv(3, 4, stride=2),
        qkv=nn.Linear(4, 12),
        out=nn.Linear(4, 4),
        up=nn.Linear(4, 6),
        down=nn.Linear(6, 4),
        head=nn.Linear(4, 2),
    )


def test_transformer_block(prove: Prove) -> None:
    """The hidden width of the MLP is free; the stream's number is divided among the module's two heads."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.stem(x).flatten(2).transpose(1, 2) + net.position
        h = net.norm1(tokens)
        tokens = tokens + net.attention(h, h, h, need_weights=False)[0]
        return net.head((tokens + net.mlp(net.norm2(tokens))).mean(1))

    prove(
        forward,
        {"stem": "4 frozen:attention", "attention.in_proj_weight": "2 frozen:attention", "mlp.0": "6 exact"},
        onnx=True,
        stem=conv(3, 4, stride=2),
        position=nn.Parameter(torch.rand(1, 16, 4)),
        norm1=nn.LayerNorm(4),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        norm2=nn.LayerNorm(4),
        mlp=nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
        head=nn.Linear(4, 2),
    )
