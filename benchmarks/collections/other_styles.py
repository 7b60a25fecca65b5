"""Small networks written the way that other model collections write theirs.

    python benchmarks/conformance.py --collection benchmarks/collections/other_styles.py --report none

Each takes images of 32 pixels or more. They are here for their wiring, not for their accuracy: every one has
a construct that torchvision's classifiers lack, or writes a common one in another way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Classifier(nn.Module):
    """Stem, body, average pooling and a linear layer."""

    def __init__(self, body: nn.Module, width: int, features: int, stride: int = 2) -> None:
        super().__init__()
        self.stem = conv_norm(3, width, 3, stride)
        self.body = body
        self.fc = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((-2, -1)))


class GhostModule(nn.Module):
    """Cheap operations make the other half of the channels; more than wanted are cut off."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        half = math.ceil(outputs / 2)
        self.primary = conv_norm(inputs, half, 1)
        self.cheap = conv_norm(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], dim=1)[:, : self.outputs, :, :]


def ghost_net() -> nn.Module:
    return Classifier(nn.Sequential(GhostModule(8, 15), GhostModule(15, 24)), 8, 24)


class Res2Block(nn.Module):
    """Hierarchical residuals over splits of the width."""

    def __init__(self, channels: int, scale: int = 4) -> None:
        super().__init__()
        self.width, self.scale = channels // scale, scale
        self.reduce = conv_norm(channels, channels, 1)
        self.convs = nn.ModuleList(conv_norm(self.width, self.width) for _ in range(scale - 1))
        self.expand = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.reduce(x), self.width, 1)
        outputs: list[Tensor] = []
        for index, conv in enumerate(self.convs):
            piece = pieces[index] if index == 0 else outputs[-1] + pieces[index]
            outputs.append(conv(piece))
        outputs.append(pieces[self.scale - 1])
        return F.relu(self.norm(self.expand(torch.cat(outputs, 1))) + x)


def res2net() -> nn.Module:
    return Classifier(nn.Sequential(Res2Block(16), Res2Block(16)), 16, 16)


class SplitAttention(nn.Module):
    """ResNeSt's radix softmax."""

    def __init__(self, channels: int, radix: int = 2) -> None:
        super().__init__()
        self.radix = radix
        self.conv = conv_norm(channels, channels * radix, 3, groups=radix)
        self.fc1 = nn.Conv2d(channels, 8, 1)
        self.fc2 = nn.Conv2d(8, channels * radix, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.radix, channels // self.radix, height, width)
        gap = x.sum(dim=1).mean((2, 3), keepdim=True)
        weights = self.fc2(F.relu(self.fc1(gap))).view(batch, self.radix, channels // self.radix)
        weights = F.softmax(weights, dim=1).reshape(batch, self.radix, -1, 1, 1)
        return (x * weights).sum(dim=1)


def split_attention() -> nn.Module:
    return Classifier(nn.Sequential(SplitAttention(12), SplitAttention(12)), 12, 12)


class ChannelConv(nn.Module):
    """ECA: a one-dimensional convolution over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return x * gate.sigmoid().expand_as(x)


def eca() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(8, 16), ChannelConv(), conv_norm(16, 12)), 8, 12)


class Cbam(nn.Module):
    """Channel attention by two poolings and a shared MLP, then spatial attention by mean and maximum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, channels)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.size(0), x.size(1)
        average = self.mlp(F.adaptive_avg_pool2d(x, 1).view(batch, -1))
        peak = self.mlp(F.adaptive_max_pool2d(x, 1).view(batch, -1))
        x = x * torch.sigmoid(average + peak).view(batch, channels, 1, 1)
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.spatial(pooled))


def cbam() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(8, 16), Cbam(16), conv_norm(16, 12)), 8, 12)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of NCHW, by permuting."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response normalisation, channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)) + self.beta + x


class ConvNextBlock(nn.Module):
    """Depthwise convolution, norm, MLP with response norm, drop path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up, self.grn, self.down = nn.Linear(channels, 32), ResponseNorm(32), nn.Linear(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(self.grn(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        keep = torch.ones(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype)
        return x + y * keep


def convnext_v2() -> nn.Module:
    down = nn.Sequential(LayerNorm2d(12), nn.Conv2d(12, 20, 2, 2))
    return Classifier(nn.Sequential(ConvNextBlock(12), down, ConvNextBlock(20)), 12, 20)


class Attention(nn.Module):
    """timm's attention: the size of a head is computed from the width."""

    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP with layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(dim), Attention(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim * 2), nn.GELU(), nn.Dropout(0.1), nn.Linear(dim * 2, dim))
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x)) * self.scale


class SmallVit(nn.Module):
    """Patch embedding, class token, learned positions."""

    def __init__(self, dim: int = 16, image_size: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (image_size // 8) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.Sequential(TransformerBlock(dim), TransformerBlock(dim))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(image_size: int = 32) -> nn.Module:
    return SmallVit(image_size=image_size)


class MixerBlock(nn.Module):
    """MLP over tokens, then over channels."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(dim, 24), nn.GELU(), nn.Linear(24, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class SmallMixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        tokens = (image_size // 8) ** 2
        self.blocks = nn.Sequential(MixerBlock(tokens, 16), MixerBlock(tokens, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))


def mixer(image_size: int = 32) -> nn.Module:
    return SmallMixer(image_size)


class SpatialGate(nn.Module):
    """gMLP's spatial gating unit."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(dim // 2), nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v).transpose(-1, -2)).transpose(-1, -2)


class SmallGmlp(nn.Module):
    """Gated MLP."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        tokens = (image_size // 8) ** 2
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.up, self.gate, self.down = nn.Linear(12, 32), SpatialGate(32, tokens), nn.Linear(16, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.down(self.gate(F.gelu(self.up(x))))
        return self.head(x.mean(1))


def gmlp(image_size: int = 32) -> nn.Module:
    return SmallGmlp(image_size)


class C2f(nn.Module):
    """YOLO's cross-stage block: chunks, a growing list, one concatenation."""

    def __init__(self, channels: int, hidden: int = 6, depth: int = 2) -> None:
        super().__init__()
        self.cv1 = conv_norm(channels, 2 * hidden, 1)
        self.cv2 = conv_norm((2 + depth) * hidden, channels, 1)
        self.m = nn.ModuleList(
            nn.Sequential(conv_norm(hidden, hidden), conv_norm(hidden, hidden)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(block(y[-1]) + y[-1] for block in self.m)
        return self.cv2(torch.cat(y, 1))


class PyramidPool(nn.Module):
    """SPPF: three poolings one after the other, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv_norm(channels, channels // 2, 1), conv_norm(channels * 2, channels, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.pool(x)
        y2 = self.pool(y1)
        return self.cv2(torch.cat((x, y1, y2, self.pool(y2)), 1))


def yolo_backbone() -> nn.Module:
    return Classifier(nn.Sequential(C2f(12), PyramidPool(12), C2f(12)), 12, 12)


class UNet(nn.Module):
    """Skip connections, transposed convolutions, and a map of classes as output."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.mid = (
            conv_norm(3, 8),
            conv_norm(8, 12, stride=2),
            conv_norm(12, 16, stride=2),
        )
        self.up2, self.dec2 = nn.ConvTranspose2d(16, 12, 2, 2), conv_norm(24, 12)
        self.up1, self.dec1 = nn.ConvTranspose2d(12, 8, 2, 2), conv_norm(16, 8)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.enc1(x)
        two = self.enc2(one)
        y = self.dec2(torch.cat([self.up2(self.mid(two)), two], 1))
        up = self.up1(y)
        if up.shape[-2:] != one.shape[-2:]:
            up = F.interpolate(up, size=one.shape[-2:])
        return self.out(self.dec1(torch.cat([up, one], 1)))


def unet() -> nn.Module:
    return UNet()


class FeaturePyramid(nn.Module):
    """Lateral connections, and a dict of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (
            conv_norm(3, 8, stride=2),
            conv_norm(8, 12, stride=2),
            conv_norm(12, 16, stride=2),
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (8, 12, 16))
        self.smooth = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = [self.c1(x)]
        features.append(self.c2(features[-1]))
        features.append(self.c3(features[-1]))
        top = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for level in range(len(top) - 1, 0, -1):
            top[level - 1] = top[level - 1] + F.interpolate(
                top[level], size=top[level - 1].shape[-2:], mode="nearest"
            )
        return {
            f"p{level}": self.head(smooth(t))
            for level, (smooth, t) in enumerate(zip(self.smooth, top, strict=True))
        }


def feature_pyramid() -> nn.Module:
    return FeaturePyramid()


class HighResolution(nn.Module):
    """HRNet's exchange between resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = conv_norm(8, 8), conv_norm(8, 12, stride=2)
        self.high2, self.low2 = conv_norm(8, 8), conv_norm(12, 12)
        self.to_low, self.to_high = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 8, 1)
        self.last = conv_norm(20, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.high(x), self.low(x)
        high, low = self.high2(high), self.low2(low)
        size = high.shape[-2:]
        fused = F.relu(
            high + F.interpolate(self.to_high(low), size=size, mode="bilinear", align_corners=False)
        )
        low = F.relu(low + self.to_low(high))
        return self.last(torch.cat([fused, F.interpolate(low, size=size, mode="nearest")], 1))


def hrnet() -> nn.Module:
    return Classifier(HighResolution(), 8, 16)


class InceptionNext(nn.Module):
    """Depthwise branches over unequal splits of the channels."""

    def __init__(self, channels: int, branch: int = 3) -> None:
        super().__init__()
        self.sizes = (channels - 3 * branch, branch, branch, branch)
        self.square = nn.Conv2d(branch, branch, 3, padding=1, groups=branch)
        self.wide = nn.Conv2d(branch, branch, (1, 11), padding=(0, 5), groups=branch)
        self.tall = nn.Conv2d(branch, branch, (11, 1), padding=(5, 0), groups=branch)
        self.mix = conv_norm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        same, square, wide, tall = torch.split(x, self.sizes, dim=1)
        return self.mix(torch.cat((same, self.square(square), self.wide(wide), self.tall(tall)), dim=1)) + x


def inception_next() -> nn.Module:
    return Classifier(nn.Sequential(InceptionNext(16), InceptionNext(16)), 16, 16)


class LargeKernelAttention(nn.Module):
    """VAN: a product of a tensor with a function of itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj1, self.proj2 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x.clone()
        x = F.gelu(self.proj1(x))
        return self.proj2(x * self.conv2(self.conv1(self.conv0(x)))) + shortcut


def van() -> nn.Module:
    return Classifier(nn.Sequential(LargeKernelAttention(12), nn.BatchNorm2d(12)), 12, 12)


class GroupShuffle(nn.Module):
    """ShuffleNet V1: grouped 1x1 convolutions around a shuffle."""

    def __init__(self, channels: int, hidden: int = 12, groups: int = 3) -> None:
        super().__init__()
        self.groups = groups
        self.one = conv_norm(channels, hidden, 1, groups=groups)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.two = nn.Conv2d(hidden, channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        n, c, h, w = y.size()
        y = (
            y.view(n, self.groups, c // self.groups, h, w)
            .permute(0, 2, 1, 3, 4)
            .contiguous()
            .view(n, c, h, w)
        )
        return F.relu(x + self.two(self.depthwise(y)))


def shufflenet_v1() -> nn.Module:
    return Classifier(nn.Sequential(GroupShuffle(12), GroupShuffle(12)), 12, 12)


class StandardisedConv(nn.Conv2d):
    """NFNet and BiT: the kernel is standardised on the fly."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        weight = (weight - mean) / (weight.var((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised() -> nn.Module:
    body = nn.Sequential(
        StandardisedConv(8, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(), conv_norm(12, 16)
    )
    return Classifier(body, 8, 16)


class Blur(nn.Module):
    """BlurPool: a fixed filter, repeated for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        kernel = (row[:, None] * row[None, :] / 16).expand(channels, 1, 3, 3).clone()
        self.channels = channels
        self.register_buffer("kernel", kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=self.channels)


def blur_pool() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(8, 12), Blur(12), conv_norm(12, 16)), 8, 16)


class CrossCovariance(nn.Module):
    """EdgeNeXt and XCiT: attention between channels."""

    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(x).reshape(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        x = self.proj((attention @ v).permute(0, 3, 1, 2).reshape(batch, -1, channels))
        return x.transpose(1, 2).reshape(batch, channels, height, width)


def xcit() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(8, 12), CrossCovariance(12), conv_norm(12, 16)), 8, 16)


class ReducedAttention(nn.Module):
    """PVT: keys and values from a coarser map."""

    def __init__(self, dim: int, heads: int = 2, reduction: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim * 2), nn.Linear(dim, dim)
        self.sr, self.norm = nn.Conv2d(dim, dim, reduction, reduction), nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).permute(0, 2, 1, 3)
        small = self.sr(x.permute(0, 2, 1).reshape(B, C, H, W)).reshape(B, C, -1).permute(0, 2, 1)
        kv = self.kv(self.norm(small)).reshape(B, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class Pvt(nn.Module):
    """A stage of a pyramid vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12)
        self.attention = ReducedAttention(12)
        self.fc1, self.depthwise, self.fc2 = (
            nn.Linear(12, 24),
            nn.Conv2d(24, 24, 3, 1, 1, groups=24),
            nn.Linear(24, 12),
        )
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        B, C, H, W = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm(x), H, W)
        y = self.fc1(x)
        y = self.depthwise(y.transpose(1, 2).view(B, y.shape[-1], H, W)).flatten(2).transpose(1, 2)
        x = x + self.fc2(F.gelu(y))
        return self.head(x.reshape(B, H, W, -1).permute(0, 3, 1, 2).contiguous().mean((2, 3)))


def pvt() -> nn.Module:
    return Pvt()


class MobileVitBlock(nn.Module):
    """Unfolds a map into patches, attends, and folds it back."""

    def __init__(self, channels: int, dim: int = 12, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.local, self.up = conv_norm(channels, channels), nn.Conv2d(channels, dim, 1)
        self.block = TransformerBlock(dim)
        self.down, self.fusion = conv_norm(dim, channels, 1), conv_norm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x = x, self.up(self.local(x))
        p, (B, C, H, W) = self.patch, x.shape
        rows, columns = H // p, W // p
        x = x.reshape(B * C * rows, p, columns, p).transpose(1, 2)
        x = x.reshape(B, C, rows * columns, p * p).transpose(1, 3).reshape(B * p * p, rows * columns, C)
        x = self.block(x)
        x = (
            x.contiguous()
            .view(B, p * p, rows * columns, -1)
            .transpose(1, 3)
            .reshape(B * C * rows, columns, p, p)
        )
        x = x.transpose(1, 2).reshape(B, C, rows * p, columns * p)
        return self.fusion(torch.cat((shortcut, self.down(x)), dim=1))


def mobile_vit() -> nn.Module:
    return Classifier(MobileVitBlock(8), 8, 8)


class Selective(nn.Module):
    """SKNet: softmax over stacked branches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(conv_norm(channels, channels, k) for k in (3, 5))
        self.squeeze = conv_norm(channels, 6, 1)
        self.excite = nn.Conv2d(6, channels * 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([branch(x) for branch in self.branches], dim=1)
        gate = self.excite(self.squeeze(stacked.sum(1).mean((2, 3), keepdim=True)))
        B, C, H, W = gate.shape
        weights = torch.softmax(gate.view(B, 2, C // 2, H, W), dim=1)
        return torch.sum(stacked * weights, dim=1)


def sknet() -> nn.Module:
    return Classifier(nn.Sequential(Selective(8), Selective(8)), 8, 8)


class PixelAttention(nn.Module):
    """Super-resolution: a residual tail of sub-pixel convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = (
            nn.Conv2d(3, 12, 3, padding=1),
            nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(2)),
        )
        self.up, self.tail = nn.Conv2d(12, 24, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        base = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        h = first = F.leaky_relu(self.head(x), 0.1)
        for conv in self.body:
            h = h + 0.2 * F.leaky_relu(conv(h), 0.1)
        return torch.clamp(base + self.tail(self.shuffle(self.up(h + first))), -10, 10)


def super_resolution() -> nn.Module:
    return PixelAttention()
