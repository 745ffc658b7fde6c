"""The published network in float64 numpy, one example at a time: what ours must equal (Hawthorne et al. 2022).

There are no masks here but the causal one: what is padded and not to be seen is simply not passed in.
"""

import numpy as np


class PublishedNetwork:
    """Three stacks over `arrays`, by our names of parameters; b, n, c, t, m and d are as everywhere."""

    def __init__(self, arrays: dict[str, np.ndarray], heads: int):
        self.arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        self.heads = heads

    def note_memory(self, tokens):
        """Tokens [n], real ones alone, to [n, d]."""
        x = self.arrays["note_encoder.embedding.embedding"][tokens]
        return self._encode("note_encoder", x + self.arrays["note_encoder.positions.table"][: len(tokens)])

    def context_memory(self, frames):
        """Scaled log-mel [c, m], real frames alone, to [c, d]; the last of them has the table's last position."""
        table = self.arrays["context_encoder.positions.table"]
        return self._encode(
            "context_encoder", self._dense("context_encoder.project", frames) + table[len(table) - len(frames) :]
        )

    def eps(self, z, time, memory):
        """Noisy mel [t, m] at noise time 0 to 1, and [notes; context] as one memory [n, d], to [t, m]."""
        width = memory.shape[1]
        angles = 2e4 * time * 2e4 ** (-np.arange(width // 2) / (width // 2 - 1))
        noise = np.concatenate([np.sin(angles), np.cos(angles)])
        for name in ("decoder.noise_in", "decoder.noise_out"):
            noise = self._dense(name, noise)
            noise = noise / (1 + np.exp(-noise))
        x = self._dense("decoder.project", z) + self.arrays["decoder.positions.table"][: len(z)]
        for block in self._blocks("decoder.blocks"):
            h = self._film(f"{block}.film_attention", self._norm(f"{block}.norm_attention", x), noise)
            x = x + self._attend(f"{block}.self_attention", h, h)
            x = x + self._attend(f"{block}.cross_attention", self._norm(f"{block}.norm_memory", x), memory)
            x = x + self._mlp(
                f"{block}.mlp", self._film(f"{block}.film_mlp", self._norm(f"{block}.norm_mlp", x), noise)
            )
        return self._dense("decoder.out", self._norm("decoder.norm", x))

    def next_frames(self, frames, memory):
        """Of the autoregressive one: frames [t, m] to what is put out for each, given those before it, [t, m]."""
        before = np.concatenate([np.zeros((1, frames.shape[1])), frames[:-1]])
        x = self._dense("decoder.project", before) + self.arrays["decoder.positions.table"][: len(frames)]
        for block in self._blocks("decoder.blocks"):
            h = self._norm(f"{block}.norm_attention", x)
            x = x + self._attend(f"{block}.self_attention", h, h, causal=True)
            x = x + self._attend(f"{block}.cross_attention", self._norm(f"{block}.norm_memory", x), memory)
            x = x + self._mlp(f"{block}.mlp", self._norm(f"{block}.norm_mlp", x))
        return self._dense("decoder.out", self._norm("decoder.norm", x))

    def _encode(self, stack, x):
        for block in self._blocks(f"{stack}.encoder.blocks"):
            h = self._norm(f"{block}.norm_attention", x)
            x = x + self._attend(f"{block}.attention", h, h)
            x = x + self._mlp(f"{block}.mlp", self._norm(f"{block}.norm_mlp", x))
        return self._norm(f"{stack}.encoder.norm", x)

    def _blocks(self, prefix):
        count = len({name.removeprefix(f"{prefix}.").split(".")[0] for name in self.arrays if name.startswith(prefix)})
        return [f"{prefix}.{i}" for i in range(count)]

    def _dense(self, name, x):
        return x @ self.arrays[f"{name}.kernel"]

    def _norm(self, name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.arrays[f"{name}.scale"]

    def _film(self, name, x, noise):
        scale, shift = np.split(self._dense(f"{name}.project", noise), 2)
        return x * (1 + scale) + shift

    def _attend(self, name, x, memory, causal=False):
        """Nothing divides the logits; nothing to see adds nothing; causal is to see what is not later."""
        if not len(memory):
            return 0.0
        query, key, value = (
            self._dense(f"{name}.{part}", y).reshape(len(y), self.heads, -1).transpose(1, 0, 2)
            for part, y in (("query", x), ("key", memory), ("value", memory))
        )
        logits = query @ key.transpose(0, 2, 1)
        if causal:
            logits = np.where(np.tri(len(x), dtype=bool), logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        found = weights / weights.sum(-1, keepdims=True) @ value
        return self._dense(f"{name}.out", found.transpose(1, 0, 2).reshape(len(x), -1))

    def _mlp(self, name, x):
        gate = self._dense(f"{name}.wi_0", x)
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return self._dense(f"{name}.wo", gate * self._dense(f"{name}.wi_1", x))
