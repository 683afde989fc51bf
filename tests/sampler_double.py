"""A second sampler: it holds versions of weights that it was handed, and draws tokens from a hash of their names."""

import hashlib
import json

import numpy as np

from pit.data.tokens import Tokens
from pit.rollout.sample import Samples

LOGP = -2.0
"""Log-prob of each token, nats."""


class Elsewhere:
    """An engine with weights of its own: tokens are a hash of version, prompt, reference, id, number and seed.

    Args:
        closings: closing tokens of a template.
        capacity: most tokens of a sample.
        tokens: ids that it may draw, from the first up to the second.
        stuck: version at which it stays, whatever it is handed; None takes over every version.
    """

    def __init__(self, closings, capacity, tokens, stuck=None):
        self.capacity, self.handed = capacity, []
        self._closings, self._tokens, self._stuck = closings, tokens, stuck

    def samples(self, model, ids, inputs, references=None, *, n, strategy, seed):
        if self._stuck is None and (not self.handed or self.handed[-1] != model.version):
            self.handed.append(model.version)
        version = self._stuck if self._stuck is not None else model.version
        xs = Tokens.of(inputs).rows()
        refs = [None] * len(xs) if references is None else Tokens.of(references).rows()
        shape = (len(xs), n, self.capacity)
        token, length, finished = np.zeros(shape, np.int32), np.zeros(shape[:2], np.int32), np.zeros(shape[:2], bool)
        for g, (x, ref, request) in enumerate(zip(xs, refs, ids, strict=True)):
            for k in range(n):
                content = json.dumps([version, x, ref, int(request), k, seed, repr(strategy)]).encode()
                dice = np.random.default_rng(list(hashlib.blake2b(content, digest_size=16).digest()))
                count = int(dice.integers(1, self.capacity + 1))
                token[g, k, :count] = dice.integers(*self._tokens, count)
                finished[g, k] = dice.random() < 0.75
                if finished[g, k]:
                    token[g, k, count - 1] = self._closings.eos
                length[g, k] = count
        there = np.arange(self.capacity) < length[:, :, None]
        logp = np.where(there, np.float32(LOGP), np.float32(0))
        return Samples(token, length, finished, logp, logp, 1.0, version)

    def answers(self, model, ids, inputs, references=None, *, strategy, seed):
        return self.samples(model, ids, inputs, references, n=1, strategy=strategy, seed=seed).answers()[0]
