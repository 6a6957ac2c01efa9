"""Muon for the matrices, AdamW for everything else, one learning-rate factor for both.

Muon: the momentum of a matrix is replaced by the nearest orthogonal one (five Newton-Schulz steps in bf16; Jordan et
al., 2024, https://kellerjordan.github.io/posts/muon/), so every direction of a layer learns at the same speed. Joined
matrices (q, k, v; gate, up) are treated one by one.
"""
import torch

from model import Transformer


def orthogonalise(g: torch.Tensor) -> torch.Tensor:
    """g [rows, columns] f32 -> a matrix with the same singular vectors and singular values near 1, bf16."""
    x = g.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.t()
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.t() if tall else x


class Optimiser:
    """Keeps a momentum for each matrix and torch's AdamW for embedding, norms and biases; neither norms, biases nor the
    embedding decay.

    muon: change of a matrix per step as a multiple of an orthogonal one; adam, bias: learning rates of AdamW, bias for
    biases alone.
    """

    def __init__(self, model: Transformer, muon: float = 0.02, adam: float = 0.004, bias: float = 0.02,
                 decay: float = 0.05) -> None:
        c = model.config
        self.muon, self.decay = muon, decay
        dim = c.head_dim
        self.matrices: list[tuple[torch.nn.Parameter, list[int]]] = []
        for block in model.blocks:
            self.matrices += [(block.qkv, [c.heads * dim, c.kv_heads * dim, c.kv_heads * dim]), (block.out, [c.width]),
                              (block.gate_up, [c.ff, c.ff]), (block.down, [c.width])]
        self.momenta = [torch.zeros_like(p) for p, _ in self.matrices]
        held = {id(p) for p, _ in self.matrices}
        biases = [p for n, p in model.named_parameters() if n.endswith('bias')]
        others = [p for n, p in model.named_parameters() if id(p) not in held and not n.endswith('bias')]
        groups = [{'params': others, 'base': adam}] + ([{'params': biases, 'base': bias}] if biases else [])
        self.adam = torch.optim.AdamW(groups, lr=adam, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update from the gradients in the parameters; factor: share of the full learning rates, 0 to 1."""
        rate = self.muon * factor
        for (p, rows), momentum in zip(self.matrices, self.momenta):
            momentum.mul_(0.95).add_(p.grad)
            ahead = p.grad.add(momentum, alpha=0.95)
            p.mul_(1 - rate * self.decay)
            for part, update in zip(p.split(rows), ahead.split(rows)):
                part.add_(orthogonalise(update), alpha=-rate * max(1.0, part.shape[0] / part.shape[1])**0.5)
        for group in self.adam.param_groups:
            group['lr'] = group['base'] * factor
        self.adam.step()

    def state(self) -> dict:
        return {'momenta': self.momenta, 'adam': self.adam.state_dict()}

    def load(self, state: dict) -> None:
        for mine, theirs in zip(self.momenta, state['momenta'], strict=True):
            mine.copy_(theirs)
        self.adam.load_state_dict(state['adam'])
