"""The method as a logits processor of transformers, for anyone's own call of `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from graftwork import DataError
from graftwork_transfer_q_star.calls import CallCount
from graftwork_transfer_q_star.models import context_length, end_tokens, padding_token, transformers_model
from graftwork_transfer_q_star.prefix_cache import PrefixCache
from graftwork_transfer_q_star.rollouts import roll_out
from graftwork_transfer_q_star.scoring import RewardScorer
from graftwork_transfer_q_star.settings import TransferSettings
from graftwork_transfer_q_star.tilt import direct_values, indirect_values, tilt

__all__ = ["TransferQProcessor"]


class TransferQProcessor(LogitsProcessor):
    """Tilts the next-token scores of a reference by the rewards of finished responses (Chakraborty et al., 2024, section 3).

    Each of the K likeliest tokens z is continued to a response by the baseline; r of the responses estimates Q*(s, z), and the scores
    become log pi_ref(z|s) + Q(s, z) / alpha, less a constant of the row. A candidate that ends the text is scored as it is. Use one for
    one call of `generate`: it remembers the prompt.

    Args:
        reward: offers `score(samples, prompts)` -> (B,), or is a function of the same; higher is better.
        baseline: rolls out: a CausalLM, or a model of transformers with `tokenizer` given. Needed unless the horizon is 0.
        settings: numbers of the method; those of the authors' code by default.
        baseline_reward: r_BL that the baseline was aligned to; for the indirect mode.
        tokenizer: of both language models; by default the baseline's.
        end: tokens that end a text; by default those of the baseline's generation config.
        attention_mask: (B, L) of the prompts, 0 at the padding on the left; by default padding is told as `generate` does, by its token.
        generator: draws sampled rollouts, on the CPU; by default one seeded with 0.
        calls: what the cost is added to.

    Raises:
        ValueError: if a part is missing or does not go with the mode.
        DataError: while it works, if the prompt leaves the baseline no room for rollouts, or rewards are of a wrong shape or not finite.
    """

    def __init__(
        self,
        reward: Any,
        baseline: Any = None,
        settings: TransferSettings | None = None,
        *,
        baseline_reward: Any = None,
        tokenizer: Any = None,
        end: Sequence[int] | None = None,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        calls: CallCount | None = None,
    ):
        self.settings = settings or TransferSettings()
        if (baseline_reward is not None) != (self.settings.mode == "indirect"):
            what = "needs baseline_reward" if baseline_reward is None else "takes no baseline_reward, which goes with mode indirect"
            raise ValueError(f"mode {self.settings.mode} {what}")
        if baseline is None and self.settings.length:
            raise ValueError(f"rollouts of {self.settings.length} tokens need a baseline; without one set horizon to 0")
        tokenizer = tokenizer if tokenizer is not None else getattr(baseline, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("give the tokenizer: the baseline carries none")
        self.tokenizer, self.calls = tokenizer, calls or CallCount()
        self._baseline = None if baseline is None else transformers_model(baseline)
        self._end = list(end) if end is not None else end_tokens(self._baseline, tokenizer)
        self._padding = padding_token(self._baseline, tokenizer)
        self._prefixes = PrefixCache(self._baseline, self.settings.reuse_prefix) if self.settings.length else None
        seen = self.settings.reward_batch_size, self.settings.keep_special_tokens
        self._scorers = [RewardScorer(one, tokenizer, *seen) for one in (reward, baseline_reward) if one is not None]
        self._generator = generator or torch.Generator().manual_seed(0)
        self._mask, self._prompt_length, self._prompts = attention_mask, -1, list[str]()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            input_ids: (B, L) long, prompts and what follows them so far.
            scores: (B, V), logits or log-probabilities of the reference.

        Returns:
            (B, V): the tilted log-probabilities, -inf beyond the candidates; rows that have ended keep the reference's.
        """
        if self._prompt_length < 0:
            self._begin(input_ids, scores)
        log_probs = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=-1)
        ended = torch.isin(input_ids[:, self._prompt_length :], self._ends(input_ids)).any(dim=1)
        rows = (~ended).nonzero()[:, 0]
        self.calls.tokens += len(rows)
        if not len(rows):
            return log_probs
        considered = self._possible(log_probs[rows])
        chosen, candidates = considered.topk(self.settings.top_k, dim=-1)
        values = self._values(input_ids, rows, candidates, chosen.isfinite())
        return log_probs.index_copy(0, rows, tilt(considered, candidates, values, self.settings.alpha))

    def _ends(self, like: Tensor) -> Tensor:
        return torch.tensor(self._end, dtype=torch.long, device=like.device)

    def _possible(self, log_probs: Tensor) -> Tensor:
        """Without the tokens that the baseline has no embedding for: padding of the reference's vocabulary."""
        known = log_probs.shape[-1] if self._baseline is None else self._baseline.get_input_embeddings().num_embeddings
        if known >= log_probs.shape[-1]:
            return log_probs
        return log_probs.masked_fill(torch.arange(log_probs.shape[-1], device=log_probs.device) >= known, -torch.inf)

    # -- the first call --------------------------------------------------------------------------------------------------------

    def _begin(self, input_ids: Tensor, scores: Tensor) -> None:
        """Learn the prompts, and whether there is room for rollouts."""
        if self.settings.top_k > scores.shape[-1]:
            raise ValueError(f"top_k is at most the vocabulary of {scores.shape[-1]} tokens; found {self.settings.top_k}")
        self._prompt_length = input_ids.shape[1]
        mask = self._given_mask(input_ids)
        longest, most = int(mask.sum(dim=1).max()), context_length(self._baseline)
        if most is not None and self.settings.length and longest + 1 + self.settings.length > most:
            raise DataError(
                f"a prompt has {longest} tokens; the baseline takes {most}, of which a candidate and its rollout need "
                f"{1 + self.settings.length}: shorten the prompt or horizon"
            )
        self._mask = mask
        kept = [row[inside].tolist() for row, inside in zip(input_ids.cpu(), mask.cpu(), strict=True)]
        skip = not self.settings.keep_special_tokens
        self._prompts = self.tokenizer.batch_decode(kept, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    def _given_mask(self, input_ids: Tensor) -> Tensor:
        if self._mask is None:  # as `generate` does
            padded = input_ids == self._padding
            return ~padded if self._padding not in self._end else torch.ones_like(padded)
        mask = self._mask.to(input_ids.device).bool()
        if mask.shape[1] != input_ids.shape[1] or len(input_ids) % len(mask):
            raise ValueError(f"attention_mask {tuple(mask.shape)} does not fit prompts {tuple(input_ids.shape)}")
        return mask.repeat_interleave(len(input_ids) // len(mask), dim=0)  # num_return_sequences

    # -- values of candidates --------------------------------------------------------------------------------------------------

    def _values(self, input_ids: Tensor, rows: Tensor, candidates: Tensor, known: Tensor) -> Tensor:
        """Q (A, K) of the candidates (A, K) of some rows (A,); -inf where they are not known to be possible."""
        rolled = known & ~torch.isin(candidates, self._ends(candidates)) if self.settings.length else torch.zeros_like(known)
        as_they_are, continued = (known & ~rolled).nonzero(), rolled.nonzero()  # (n, 2): row and candidate
        samples = self.settings.samples if self.settings.length else 1
        tokens = candidates.new_full((len(as_they_are), 1 + self.settings.length), self._padding)
        tokens[:, 0] = candidates[as_they_are[:, 0], as_they_are[:, 1]]
        lengths = torch.ones_like(tokens[:, 0])
        if len(continued):
            grown = self._roll_out(input_ids, rows, candidates, continued)
            tokens, lengths = torch.cat([tokens[:, : grown[0].shape[1]], grown[0]]), torch.cat([lengths, grown[1]])
        owners = torch.cat([rows[as_they_are[:, 0]], rows[continued[:, 0]].repeat_interleave(samples)])
        found = []
        for scorer in self._scorers:
            rewards = self._rewards(scorer, input_ids, owners, tokens, lengths)
            filled = rewards.new_zeros(*candidates.shape, samples)
            filled[as_they_are[:, 0], as_they_are[:, 1]] = rewards[: len(as_they_are), None]
            filled[continued[:, 0], continued[:, 1]] = rewards[len(as_they_are) :].view(-1, samples)
            found.append(filled)
        return self._estimate(found).masked_fill(~known, -torch.inf)

    def _estimate(self, rewards: list[Tensor]) -> Tensor:
        """Q (A, K) from rewards (A, K, M), those of r first."""
        if self.settings.mode == "direct":
            return direct_values(rewards[0])
        assert self.settings.beta is not None
        values = indirect_values(rewards[0], rewards[1], self.settings.beta, self.settings.normalize)
        if not values.isfinite().all():
            raise DataError('weights exp((r - r_BL) / beta) are beyond float32: give a greater beta, or normalize "self"')
        return values

    def _text_mask(self, input_ids: Tensor) -> Tensor:
        """(B, L) bool, False at the padding on the left."""
        assert self._mask is not None
        return torch.cat([self._mask, self._mask.new_ones(len(input_ids), input_ids.shape[1] - self._prompt_length)], dim=1)

    def _roll_out(self, input_ids: Tensor, rows: Tensor, candidates: Tensor, continued: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (n M, 1 + H) and lengths (n M,) of the rollouts of the candidates at `continued` (n, 2)."""
        assert self._prefixes is not None
        where, samples, policy = self._prefixes.model.device, self.settings.samples, self.settings.picks
        mask, most = self._text_mask(input_ids), context_length(self._baseline)
        room = self.settings.length if most is None else min(self.settings.length, most - 1 - int(mask.sum(dim=1).max()))
        noise = None
        if policy.sample:  # for every row, ended or not, so that no row's draws depend on another's end
            shape = (len(input_ids), candidates.shape[1], samples, self.settings.length)
            drawn = torch.rand(shape, generator=self._generator)[rows.cpu()]
            noise = drawn[continued[:, 0].cpu(), continued[:, 1].cpu()].flatten(0, 1).to(where)
        before = self._prefixes.forwards, self._prefixes.tokens
        self._prefixes.advance(input_ids.to(where), mask.to(where))
        after_prefix = self._prefixes.tokens
        tokens, lengths = roll_out(
            self._prefixes,
            rows[continued[:, 0]].repeat_interleave(samples).to(where),
            candidates[continued[:, 0], continued[:, 1]].repeat_interleave(samples).to(where),
            max(room, 0),
            end=self._ends(input_ids).to(where),
            padding=self._padding,
            policy=policy,
            noise=noise,
            memory=int(self.settings.memory * 2**20),
        )
        self.calls.lm_forwards += self._prefixes.forwards - before[0]
        self.calls.lm_tokens += self._prefixes.tokens - before[1]
        self.calls.rollout_tokens += self._prefixes.tokens - after_prefix
        return tokens.to(input_ids.device), lengths.to(input_ids.device)

    def _rewards(self, scorer: RewardScorer, input_ids: Tensor, owners: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Rewards (N,) of responses that grow from the rows `owners` (N,) by `tokens` (N, n), of which `lengths` (N,) count."""
        same: Tensor | None = None
        if self.settings.samples > 1:  # draws that came out alike are scored once
            rows, same = torch.unique(torch.cat([owners[:, None], lengths[:, None], tokens], dim=1), dim=0, return_inverse=True)
            owners, lengths, tokens = rows[:, 0], rows[:, 1], rows[:, 2:]
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        sequences = torch.cat([input_ids[owners], tokens], dim=1)
        mask = torch.cat([self._text_mask(input_ids)[owners], inside], dim=1)
        before = scorer.calls, scorer.scored
        found = scorer(sequences, mask, [] if scorer.uses_ids else [self._prompts[owner] for owner in owners.tolist()])
        self.calls.reward_calls += scorer.calls - before[0]
        self.calls.rewards += scorer.scored - before[1]
        return found if same is None else found[same]
