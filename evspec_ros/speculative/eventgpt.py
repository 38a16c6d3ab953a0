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
from evspec_ros.networks.devices import fetched
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import KVCache
from evspec_ros.sizes import EVENT_AHEAD, cache_rows
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.event_side import EventSide, Prefilling
from evspec_ros.speculative.growth import grow_chain
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree

Readout = Callable[[Tensor], Tensor]  # features [D_event] before the final norm -> logits [V]


class EventWriter:
    """One text of the event model's: the tokens behind its prompt, and the likeliest one after each."""

    def __init__(
        self, model: EventGpt, readout: Readout | None = None, engines: DrafterEngines | None = None
    ) -> None:
        """readout: in the place of its own head; reads the features [n, D_event] after the final norm;
        engines: what computes its rows, by default the best ones.
        """
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
        hidden: Tensor = self._model.decoder.norm(output.features[0][-1])
        self._prompt_rows, self.tokens = rows, []
        logits = output.logits[0] if self._readout is None else self._readout(hidden)
        self.next_tokens = [self._likeliest(logits)]
        return hidden

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        assert self._cache is not None, "Cannot append before a prompt"
        output = self._engine.run(Rows(torch.tensor(tokens)), self._cache, self._layers)
        self.runs += 1
        for row in range(len(tokens)):
            logits = (
                output.logits[row]
                if self._readout is None
                else self._readout(self._model.decoder.norm(output.features[0][row]))
            )
            self.next_tokens.append(self._likeliest(logits))
        self.tokens += tokens

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
    def _likeliest(logits: Tensor) -> tuple[int, float]:
        probability, token = torch.softmax(logits, -1, dtype=torch.float32).max(-1)
        found, chance = fetched(token, probability)
        return int(found), float(chance)

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

    def propose(self, limits: DraftLimits, *_: object) -> DraftTree:
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

    def accept(self, tokens: Sequence[int], _: tuple[Tensor, ...]) -> None:
        """The text goes on."""
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
