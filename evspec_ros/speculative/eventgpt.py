"""Token-level drafting: the event model writes on from what the target has written, from its own view of the
scene.

By its own output head, or by an adapter that turns its features into the target's. It begins while the target
still reads its prompt: what it has written by then is verified in the target's first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from evspec_ros.engines.decoder import DecoderEngine, Rows
from evspec_ros.engines.drafter import DrafterEngines, drafter_engines
from evspec_ros.networks.cuda_streams import has_streams
from evspec_ros.networks.devices import fetched, uploaded
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import KVCache
from evspec_ros.sizes import EVENT_AHEAD, cache_rows
from evspec_ros.speculative.device_growth import UnseenDepth, grown_chain
from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide, Prefilling
from evspec_ros.speculative.growth import grow_chain
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree

Readout = Callable[[Tensor], Tensor]  # features [n, D_event] after the final norm -> logits [n, V]


class EventWriter:
    """One text of the event model's: the tokens behind its prompt, and the likeliest one after each."""

    def __init__(
        self, model: EventGpt, readout: Readout | None = None, engines: DrafterEngines | None = None
    ) -> None:
        """readout: in the place of its own head; engines: what computes its rows, by default the best."""
        self._model = model
        self._engines = engines or drafter_engines("auto", (model,))
        self._readout = readout
        self._layers = () if readout is None else (model.config.text.num_layers,)
        self._cache: KVCache | None = None
        self._prompt_rows = 0
        self.vocabulary = model.config.text.vocab_size
        self.runs = 0  # behind prompts, in all
        self.tokens: list[int] = []  # whose rows are in the cache, behind the prompt's
        # the likeliest after the prompt and after each of them, with its probability
        self.next_tokens: list[tuple[int, float]] = []

    def read_prompt(self, ids: tuple[Sequence[int], Sequence[int]], events: Tensor) -> Tensor:
        """Begin anew with the ids before the event tokens, those tokens [E, D_event] and the ids behind them;
        the features of the last row [D_event].
        """
        before, after = (torch.tensor(part, device=events.device) for part in ids)
        embeddings = self._model.embed_prompt(before, events, after)
        rows, last = len(embeddings), self._model.config.text.num_layers
        cache = self._empty_cache(rows + EVENT_AHEAD)
        output = self._engine.read(embeddings, cache, (last,))
        hidden: Tensor = self._model.decoder.norm(output.features[0][-1:])
        self._prompt_rows, self.tokens = rows, []
        logits = output.logits if self._readout is None else self._readout(hidden)
        self.next_tokens = self._told(self._likeliest(logits))
        return hidden[0]

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        self.next_tokens += self._told(self.step(torch.tensor(tokens)))
        self.tokens += tokens

    def step(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Read tokens int64 [n] behind all that it has read, without a look at them: the likeliest token
        after each, int64 [n], with its probability, float32 [n]. `confirm` says what becomes of them.
        """
        assert self._cache is not None, "Cannot append before a prompt"
        output = self._engine.run(Rows(ids), self._cache, self._layers)
        self.runs += 1
        if self._readout is None:
            return self._likeliest(output.logits)
        return self._likeliest(self._readout(self._model.decoder.norm(output.features[0])))

    def confirm(self, text: Sequence[int]) -> None:
        """The text goes on so: of what was read unseen behind `tokens` keep what is in it."""
        assert self._cache is not None, "There is nothing to confirm before a prompt"
        self.tokens += text[len(self.tokens) : self._cache.length - self._prompt_rows]
        self._cache.truncate(self._prompt_rows + len(self.tokens))

    @cached_property
    def _engine(self) -> DecoderEngine:
        """Made when it is first needed."""
        return self._engines.rows(self._model.decoder, self._model.lm_head)

    def make_room(self, count: int) -> None:
        """Let as many tokens follow the prompt as the model has positions for, at most `count`."""
        cache = self._cache
        assert cache is not None, "Cannot make room before a prompt"
        rows = min(self._prompt_rows + count, self._model.config.text.max_positions)
        if cache.capacity < rows:
            self._cache = self._new_cache(rows)
            self._cache.begin(cache.length)
            self._cache.k[..., : cache.length, :] = cache.k[..., : cache.length, :]
            self._cache.v[..., : cache.length, :] = cache.v[..., : cache.length, :]

    @property
    def room(self) -> int:
        """How many more tokens it can read."""
        assert self._cache is not None, "There is no room before a prompt"
        return min(self._cache.capacity, self._model.config.text.max_positions) - self._cache.length

    def truncate(self, count: int) -> None:
        """Keep the first `count` tokens alone."""
        assert self._cache is not None, "Cannot truncate before a prompt"
        self._cache.truncate(self._prompt_rows + count)
        del self.tokens[count:], self.next_tokens[count + 1 :]

    @staticmethod
    def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits [n, V] the likeliest tokens int64 [n] and their probabilities float32 [n]."""
        probabilities, tokens = torch.softmax(logits, -1, dtype=torch.float32).max(-1)
        return tokens, probabilities

    @staticmethod
    def _told(likeliest: tuple[Tensor, Tensor]) -> list[tuple[int, float]]:
        tokens, probabilities = fetched(*likeliest)
        return list(zip(tokens.tolist(), probabilities.tolist(), strict=True))

    def _empty_cache(self, capacity: int) -> KVCache:
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = self._new_cache(capacity)
        self._cache.truncate(0)
        return self._cache

    def _new_cache(self, capacity: int) -> KVCache:
        weight = self._model.lm_head.weight
        rows = cache_rows(capacity)
        return KVCache(self._model.config.text, rows, dtype=weight.dtype, device=weight.device)


class EventGptDrafter:
    """Chains of the event model's likeliest tokens, drafted without sampling."""

    layers: tuple[int, ...] = ()

    def __init__(
        self,
        model: EventGpt,
        events: EventSide,
        vocabulary: int,
        name: str = "eventgpt",
        readout: Readout | None = None,
        engines: DrafterEngines | None = None,
    ) -> None:
        """vocabulary: the target's; a token beyond it, such as those around events, ends a draft."""
        self.name = name
        self._writer = EventWriter(model, readout, engines)
        self._device = model.lm_head.weight.device
        self._depth = UnseenDepth()
        self._events = events
        self._vocabulary = vocabulary
        self._text: list[int] = []
        self._has_events = False

    def prepare(self, prompt: Prompt) -> None:
        """Read events and question, and write for as long as the target reads its prompt."""
        self._events.begin(prompt, lambda features, prefilling: self._begin(prompt, features, prefilling))

    def start(self, _: Prompt, __: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """The target emitted the first token."""
        self._events.features()
        self._text = [token]
        if self._has_events:
            self._writer.make_room(capacity)

    def propose(self, limits: DraftLimits, *_: object) -> Draft:
        """What it writes behind the text, while the path's probability is at least the limits' floor."""
        writer, text = self._writer, self._text
        runs_before = writer.runs
        if not self._has_events or max(text) >= writer.vocabulary:
            return NO_DRAFT
        prefix = common_prefix(writer.tokens, text)
        if prefix < len(text):
            writer.truncate(prefix)
            if writer.room < len(text) - prefix:
                return NO_DRAFT
        if has_streams(self._device):
            tree = self._unseen_chain(self._depth.limits(limits), text[prefix:])
        else:
            if prefix < len(text):
                writer.append(text[prefix:])
            tree = self._chain(limits, writer.room)
        return replace(tree, passes=writer.runs - runs_before)

    def free_draft(self, limits: DraftLimits) -> DraftTree:
        """What it wrote behind the text while the target read its prompt, within the limits."""
        if not self._has_events or common_prefix(self._writer.tokens, self._text) < len(self._text):
            return NO_DRAFT
        return replace(self._chain(limits, 0), passes=0)

    def _chain(self, limits: DraftLimits, more: int) -> DraftTree:
        """The tokens behind the text, at most `more` of which are still to be written."""
        writer, first = self._writer, len(self._text)
        longest = min(limits.n_max, limits.tree_size, len(writer.next_tokens) - first + more)

        def next_token(tokens: list[int]) -> tuple[int, float] | None:
            if first + len(tokens) == len(writer.next_tokens):
                writer.append(tokens[-1:])
            token, probability = writer.next_tokens[first + len(tokens)]
            return (token, probability) if token < self._vocabulary else None

        return grow_chain(limits, longest, next_token)

    def _unseen_chain(self, limits: DraftLimits, unread: Sequence[int]) -> Draft:
        """The same without a look at a token; unread: the text's last tokens, which it has not read."""
        writer, longest = self._writer, min(limits.n_max, limits.most_nodes)
        if longest == 0:
            return NO_DRAFT
        if unread:
            tokens, probabilities = writer.step(uploaded(torch.tensor(unread), self._device))
            writer.tokens += unread
            steps = [(tokens[-1:], probabilities[-1:])]
        else:
            known = writer.next_tokens[len(self._text) :][:longest]
            pairs = uploaded(torch.tensor(known, dtype=torch.float64), self._device)
            steps = [(pairs[:, 0].long(), pairs[:, 1].float())]
        for _ in range(min(longest - len(steps[0][0]), writer.room)):
            steps.append(writer.step(steps[-1][0][-1:]))
        tokens, probabilities = (torch.cat(parts) for parts in zip(*steps, strict=True))
        return grown_chain(tokens, probabilities, limits, impossible=tokens >= self._vocabulary)

    def accept(self, tokens: Sequence[int], _: tuple[Tensor, ...]) -> None:
        """The text goes on."""
        if self._has_events:
            self._writer.confirm([*self._text, *tokens[:-1]])
        self._depth.accepted(len(tokens))
        self._text += tokens

    def finish(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt from a whole text."""

    def forget(self) -> None:
        """Every text begins anew."""

    def _begin(self, prompt: Prompt, features: Tensor | None, prefilling: Prefilling) -> None:
        self._has_events = features is not None and prompt.event_ids is not None
        if features is None or prompt.event_ids is None:
            return
        writer = self._writer
        writer.read_prompt(prompt.event_ids, features)
        longest = min(EVENT_AHEAD, writer.room)
        while prefilling() and len(writer.tokens) < longest:
            writer.append([writer.next_tokens[-1][0]])


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common from the first on."""
    for index, (token, also) in enumerate(zip(one, other, strict=False)):
        if token != also:
            return index
    return min(len(one), len(other))
