"""The guidances: Transfer Q*, controlled decoding by the reference's own rollouts, and reward-guided search without any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from graftwork import Guidance
from graftwork.interfaces import CausalLM, Reward, require
from graftwork.kinds.guidance import Samples
from graftwork_transfer_q_star.attachment import guided_generate
from graftwork_transfer_q_star.calls import CallCount
from graftwork_transfer_q_star.completion import complete, encode_prompts
from graftwork_transfer_q_star.models import check_shared_tokenizer, transformers_model
from graftwork_transfer_q_star.processor import TransferQProcessor
from graftwork_transfer_q_star.rollouts import RolloutPolicy
from graftwork_transfer_q_star.scoring import score_texts
from graftwork_transfer_q_star.settings import HORIZONS, Mode, TransferSettings
from graftwork_transfer_q_star.tilt import Normalize

__all__ = ["ControlledDecoding", "RewardGuidedSearch", "TransferQStar", "ValueGuidance"]

Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class ValueGuidance(Guidance):
    """What tilts a causal language model's next-token scores by values of its likeliest tokens.

    Args:
        reward: of finished responses, or a function `(samples, prompts) -> (B,)`.
        settings: numbers of the method.
        baseline: rolls out; None is the model that the guidance is attached to.
        baseline_reward: r_BL, for the indirect mode.
        seed: of sampled rollouts; None takes torch's, which a run sets from its own.

    Attributes:
        calls: what decoding has cost since the guidance was last attached.
    """

    needs = CausalLM
    stacks = False

    def __init__(self, reward: Any, settings: TransferSettings, baseline: Any = None, baseline_reward: Any = None, seed: int | None = None):
        self.settings = settings
        if self.settings.mode == "indirect" and baseline_reward is None:
            raise ValueError("mode indirect needs baseline_reward, which the baseline was aligned to")
        if self.settings.mode == "direct" and baseline_reward is not None:
            raise ValueError("baseline_reward goes with mode indirect; found mode direct")
        if baseline is not None:
            require(baseline, CausalLM, type(self).__name__)
            transformers_model(baseline)
        self.reward, self.baseline, self.baseline_reward, self.seed = reward, baseline, baseline_reward, seed
        self.calls = CallCount()

    @contextmanager
    def attach(self, pipeline: Any) -> Iterator[Any]:
        """Let `generate` of a causal language model, the reference, decode under guidance; greedy, sampling, streaming and stopping
        criteria as the caller likes. While it runs, every model is in evaluation mode.

        Args:
            pipeline: a CausalLM.

        Raises:
            InterfaceError: if it is no CausalLM, is guided already, or has another tokenizer than the baseline.
            ValueError: if its vocabulary has fewer tokens than `top_k`.
        """
        require(pipeline, CausalLM, type(self).__name__)
        reference, baseline = transformers_model(pipeline), self.baseline if self.baseline is not None else pipeline
        check_shared_tokenizer(baseline, pipeline)
        vocabulary = reference.get_input_embeddings().num_embeddings
        if self.settings.top_k > vocabulary:
            raise ValueError(f"top_k is at most the vocabulary of {vocabulary} tokens; found {self.settings.top_k}")
        self.calls = CallCount()
        seed = torch.initial_seed() if self.seed is None else self.seed
        generator = torch.Generator().manual_seed(seed)

        def make(attention_mask: torch.Tensor | None, end: list[int]) -> TransferQProcessor:
            return TransferQProcessor(
                self.reward,
                baseline if self.settings.length else None,
                self.settings,
                baseline_reward=self.baseline_reward,
                tokenizer=pipeline.tokenizer,
                end=end,
                attention_mask=attention_mask,
                generator=generator,
                calls=self.calls,
            )

        others = [one for one in (baseline, self.reward, self.baseline_reward) if isinstance(one, nn.Module)]
        with guided_generate(reference, pipeline.tokenizer, make, others):
            yield pipeline

    def sample(self, pipeline: Any, inputs: Mapping[str, Any]) -> Samples:
        """Responses to prompts.

        Args:
            pipeline: a CausalLM.
            inputs: `prompt`, one text or several, and settings of `generate`: 128 new tokens and greedy by default; with `do_sample`
                the temperature is 0.7 by default.

        Returns:
            Responses, their prompts and metrics: `reward`, the mean of the responses', `tokens`, and the calls for each token.
        """
        settings = dict(inputs)
        prompts = settings.pop("prompt", ())
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        given = encode_prompts(pipeline, prompts)
        with self.attach(pipeline):
            found = complete(pipeline, *given, **settings)
        earned = score_texts(self.reward, found.texts, prompts, self.settings.reward_batch_size).mean().item()
        metrics = {"reward": earned, "tokens": self.calls.tokens, **self.calls.per_token()}
        return Samples(texts=found.texts, prompts=prompts, metrics=metrics)


class TransferQStar(ValueGuidance):
    """Roll out the likeliest next tokens by an aligned baseline, and tilt the reference by the rewards of the responses (Chakraborty
    et al., 2024, https://arxiv.org/abs/2405.20495, section 3).

    pi(z|s) is proportional to pi_ref(z|s) exp(TQ(s, z) / alpha), TQ(s, z) the mean reward of responses that the baseline finishes from
    [s, z]; for a baseline that was aligned to another reward, rollouts are weighed by exp((r - r_BL) / beta). No weight is changed. It
    does not stack.

    Args:
        reward: r, of finished responses; higher is better.
        baseline: the aligned language model, of the same tokenizer; None is the model itself, which is what the authors' code does: it
            decodes from the aligned model.
        mode: "direct", where the baseline was aligned to this reward, or "indirect", to another.
        baseline_reward: r_BL that the baseline was aligned to; for the indirect mode.
        beta: strength that the baseline was aligned with; for the indirect mode. The authors have 2.
        normalize: of the indirect weights: by their sum over a candidate's rollouts ("self"), or not, as in the authors' code ("none").
        alpha: strength of the pull to the reference; the authors' weight is 1 / alpha.
        top_k: likeliest tokens that are rolled out; all others become impossible.
        keep_special_tokens: whether rewards see the tokens that begin and end a text, as in the authors' code.
        reward_batch_size: texts that a reward sees at once.
        horizon: most tokens of a rollout; by default 20, indirect 5. 0 is `reward-guided-search`.
        rollouts: of each candidate; by default 1, and 4 where indirect weights are normalised by their sum.
        policy: how the baseline picks the tokens of rollouts: `sample`, `temperature`, `top_k`, `top_p`. By default a single one takes
            the likeliest, and several are drawn from the baseline itself, as the theory has it.
        memory: MiB that the caches of rollouts may take at once.
        seed: of sampled rollouts; by default the run's.

    Raises:
        ValueError: if a parameter is out of range, or two do not go together.
    """

    def __init__(
        self,
        reward: Reward,
        baseline: CausalLM | None = None,
        mode: Mode = "direct",
        baseline_reward: Reward | None = None,
        beta: Positive | None = None,
        normalize: Normalize = "self",
        alpha: Positive = 1.0,
        top_k: Count = 10,
        keep_special_tokens: bool = False,
        reward_batch_size: Count = 64,
        horizon: Length | None = None,
        rollouts: Count | None = None,
        policy: RolloutPolicy | None = None,
        memory: Positive = 2048.0,
        seed: int | None = None,
    ):
        super().__init__(reward, TransferSettings.of(locals()), baseline, baseline_reward, seed)


class ControlledDecoding(ValueGuidance):
    """Roll out the likeliest next tokens by the reference itself, and tilt it by the rewards of the responses: Q of the unaligned
    model (Mudgal et al., 2024, https://arxiv.org/abs/2310.17022, with rollouts in place of a learned value).

    Args:
        reward: r, of finished responses; higher is better.
        alpha: strength of the pull to the reference.
        top_k: likeliest tokens that are rolled out; all others become impossible.
        keep_special_tokens: whether the reward sees the tokens that begin and end a text.
        reward_batch_size: texts that the reward sees at once.
        horizon: most tokens of a rollout.
        rollouts: of each candidate.
        policy: how tokens of rollouts are picked: `sample`, `temperature`, `top_k`, `top_p`. By default a single one takes the likeliest,
            and several are drawn from the model itself.
        memory: MiB that the caches of rollouts may take at once.
        seed: of sampled rollouts; by default the run's.

    Raises:
        ValueError: if a parameter is out of range, or several rollouts are greedy.
    """

    def __init__(
        self,
        reward: Reward,
        alpha: Positive = 1.0,
        top_k: Count = 10,
        keep_special_tokens: bool = False,
        reward_batch_size: Count = 64,
        horizon: Length = HORIZONS["direct"],
        rollouts: Count = 1,
        policy: RolloutPolicy | None = None,
        memory: Positive = 2048.0,
        seed: int | None = None,
    ):
        super().__init__(reward, TransferSettings.of(locals()), seed=seed)


class RewardGuidedSearch(ValueGuidance):
    """Tilt the reference by the reward of the text so far with each of its likeliest next tokens, unfinished as it is (ARGS, Khanov et
    al., 2024, https://arxiv.org/abs/2402.01694).

    Args:
        reward: r, of unfinished responses; higher is better.
        alpha: strength of the pull to the reference; the authors' weight is 1 / alpha.
        top_k: likeliest tokens that are scored; all others become impossible.
        keep_special_tokens: whether the reward sees the tokens that begin and end a text.
        reward_batch_size: texts that the reward sees at once.

    Raises:
        ValueError: if a parameter is out of range.
    """

    def __init__(
        self, reward: Reward, alpha: Positive = 1.0, top_k: Count = 10, keep_special_tokens: bool = False, reward_batch_size: Count = 64
    ):
        super().__init__(reward, TransferSettings.of({**locals(), "horizon": 0}))
