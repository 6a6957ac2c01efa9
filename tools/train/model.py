"""A decoder-only transformer of the Llama family (Qwen2 with biases on q, k and v), written for fast training on CPU
and CUDA.

Weights are kept in f32 and rounded to bf16 once a step; the residual stream and the norms are f32, the products bf16.
The projections q, k, v are one matrix, gate and up another. Nothing holds back attention sinks or outlier channels: no
soft cap, no norm on q and k, no decay on norms, biases and embeddings.
"""
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes. heads * head_dim need not be width; heads is a multiple of kv_heads."""
    width: int = 320
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 896
    vocab: int = 4096
    theta: float = 10000.0
    qkv_bias: bool = False
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(f'wanted heads a multiple of kv_heads and an even head_dim, got {self}')

    @property
    def parameters(self) -> int:
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        block = qkv * (self.width + self.qkv_bias) + self.heads * self.head_dim * self.width
        return self.vocab * self.width + self.layers * (block + 3 * self.width * self.ff + 2 * self.width) + self.width


def normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm without its gain, x [..., width] f32 -> bf16. The gain multiplies the columns of the matrix that
    follows.
    """
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)).bfloat16()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, halves paired as in Llama's Hugging Face layout. x [N, heads, head_dim] bf16; cos, sin [N, 1,
    head_dim / 2].
    """
    a, b = x.float().chunk(2, -1)
    return torch.cat([(a * cos - b * sin).bfloat16(), (b * cos + a * sin).bfloat16()], -1)


def rotary_table(c: ModelConfig, rows: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each [rows * length, 1, head_dim / 2] f32: the same angles for every row."""
    frequencies = c.theta**(-torch.arange(0, c.head_dim, 2, device=device).double() / c.head_dim)
    angles = torch.arange(length, device=device).double()[:, None] * frequencies
    angles = angles.repeat(rows, 1)[:, None]
    return angles.cos().float(), angles.sin().float()


def project(x, norm, qkv, bias, cos, sin, heads: int, kv_heads: int, eps: float):
    """x [N, width] f32 -> q [N, heads, head_dim], k and v [N, kv_heads, head_dim], all bf16, q and k rotated."""
    h = F.linear(normalise(x, eps), (qkv * norm).bfloat16(), None if bias is None else bias.bfloat16())
    h = h.view(x.shape[0], heads + 2 * kv_heads, -1)
    qk = rotate(h[:, :heads + kv_heads], cos, sin)
    return qk[:, :heads], qk[:, heads:], h[:, heads + kv_heads:]


def finish(x, y, out, norm, gate_up, down, eps: float):
    """The rest of a block: x [N, width] f32, what attention gave y [N, heads * head_dim] bf16 -> [N, width] f32."""
    x = x + F.linear(y, out.bfloat16())
    gate, up = F.linear(normalise(x, eps), (gate_up * norm).bfloat16()).chunk(2, -1)
    return x + F.linear((F.silu(gate.float()) * up.float()).bfloat16(), down.bfloat16())


def attend_short(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention with the whole table of scores: two to three times faster on the CPU than its fused kernel up to
    some 512 tokens.

    q [B, T, heads, head_dim], k and v [B, T, kv_heads, head_dim], bf16 -> [B, T, heads * head_dim] bf16.
    """
    b, t, heads, dim = q.shape
    kv = k.shape[2]
    group = heads // kv
    q = q.view(b, t, kv, group, dim).permute(0, 2, 3, 1, 4).reshape(b * kv, group * t, dim)
    k = k.transpose(1, 2).reshape(b * kv, t, dim)
    v = v.transpose(1, 2).reshape(b * kv, t, dim)
    scores = torch.bmm(q, k.transpose(1, 2)).view(b * kv, group, t, t)
    at = torch.arange(t, device=q.device)
    scores = torch.where(at[:, None] >= at[None], scores.float() * dim**-0.5, float('-inf'))
    p = torch.softmax(scores, -1).bfloat16()
    y = torch.bmm(p.view(b * kv, group * t, t), v)
    return y.view(b, kv, group, t, dim).permute(0, 3, 1, 2, 4).reshape(b, t, -1)


def attend_fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same by the library's fused kernel, which keeps no table of scores."""
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True,
                                       enable_gqa=True)
    return y.transpose(1, 2).reshape(q.shape[0], q.shape[1], -1)


class Block(nn.Module):

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        rows = (c.heads + 2 * c.kv_heads) * c.head_dim
        self.norm1 = nn.Parameter(torch.ones(c.width))
        self.norm2 = nn.Parameter(torch.ones(c.width))
        self.qkv = nn.Parameter(torch.randn(rows, c.width) * c.width**-0.5)
        self.qkv_bias = nn.Parameter(torch.zeros(rows)) if c.qkv_bias else None
        self.out = nn.Parameter(torch.randn(c.width, c.heads * c.head_dim) * 0.5 * (c.heads * c.head_dim)**-0.5)
        self.gate_up = nn.Parameter(torch.randn(2 * c.ff, c.width) * c.width**-0.5)
        self.down = nn.Parameter(torch.randn(c.width, c.ff) * 0.5 * c.ff**-0.5)


class Transformer(nn.Module):
    """compiled: fuse the element-wise work with torch.compile; the last bits may then differ from the plain model's."""

    def __init__(self, config: ModelConfig, compiled: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.randn(config.vocab, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))
        fuse = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self._project, self._finish, self._attend_short = fuse(project), fuse(finish), fuse(attend_short)
        self._chunk_loss = fuse(chunk_loss)
        self._tables: dict[tuple[int, int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [B, T] -> what the output matrix is applied to, [B * T, width] bf16."""
        c = self.config
        b, t = ids.shape
        key = (b, t, ids.device)
        if key not in self._tables:
            self._tables[key] = rotary_table(c, b, t, ids.device)
        cos, sin = self._tables[key]
        attend = self._attend_short if t <= 512 and ids.device.type == 'cpu' else attend_fused
        x = F.embedding(ids.reshape(-1), self.embed)
        for block in self.blocks:
            q, k, v = self._project(x, block.norm1, block.qkv, block.qkv_bias, cos, sin, c.heads, c.kv_heads, c.eps)
            y = attend(*(z.view(b, t, -1, c.head_dim) for z in (q, k, v)))
            x = self._finish(x, y.view(b * t, -1), block.out, block.norm2, block.gate_up, block.down, c.eps)
        return normalise(x, c.eps)

    def output_matrix(self) -> torch.Tensor:
        """The embedding with the last norm's gain, [vocab, width] f32."""
        return self.embed * self.norm

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [B, T] -> [B, T, vocab] f32."""
        return F.linear(self.hidden(ids), self.output_matrix().bfloat16()).float().view(*ids.shape, -1)

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor,
             rows: int = 2048) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """sum(weights * nats), nats [B, T] f32, and whether the target is the most likely token, [B, T] bool.

        ids and targets [B, T] int64, weights [B, T] f32 (they decide the scale of the gradient); rows: tokens whose
        logits exist at once.
        """
        loss, nats, hit = _LinearCrossEntropy.apply(self.hidden(ids), self.output_matrix(), targets.reshape(-1),
                                                    weights.reshape(-1), rows, self._chunk_loss)
        return loss, nats.view(targets.shape), hit.view(targets.shape)


def chunk_loss(logits: torch.Tensor, targets: torch.Tensor,
               weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [N, V] bf16, targets [N], weights [N] f32 -> nats [N], target is the maximum [N], d(sum of weights * nats)
    / d(logits) in bf16.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    powers = torch.exp(logits - top)
    total = powers.sum(-1, keepdim=True)
    own = logits.gather(1, targets[:, None])
    columns = torch.arange(logits.shape[1], device=logits.device)
    grad = powers * (weights[:, None] / total) - torch.where(columns[None] == targets[:, None], weights[:, None], 0.0)
    return (top + total.log() - own)[:, 0], (own >= top)[:, 0], grad.bfloat16()


class _LinearCrossEntropy(torch.autograd.Function):
    """Output matrix and cross-entropy in pieces of rows; gradients are made on the way, so no full table of logits ever
    exists.
    """

    @staticmethod
    def forward(ctx, x, matrix, targets, weights, rows, piece_loss):
        matrix16 = matrix.bfloat16()
        grad_x, grad_matrix = torch.empty_like(x), torch.zeros_like(matrix)
        nats, hits = [], []
        for i in range(0, x.shape[0], rows):
            piece = x[i:i + rows]
            n, h, g = piece_loss(F.linear(piece, matrix16), targets[i:i + rows], weights[i:i + rows])
            torch.mm(g, matrix16, out=grad_x[i:i + rows])
            grad_matrix += g.t() @ piece
            nats.append(n)
            hits.append(h)
        ctx.save_for_backward(grad_x, grad_matrix)
        nats, hits = torch.cat(nats), torch.cat(hits)
        ctx.mark_non_differentiable(nats, hits)
        return (nats * weights).sum(), nats, hits

    @staticmethod
    def backward(ctx, grad, *_):
        grad_x, grad_matrix = ctx.saved_tensors
        return grad_x * grad.to(grad_x.dtype), grad_matrix * grad, None, None, None, None
