"""PPO for code language models: the iteration of DESIGN as one readable LightningModule."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from lightning_dterm.dterm import HashingEncoder, TaskEncoder, UniformWeighting, Weighting
from lightning_dterm.hooks import RolloutCallback, announce_phase, dispatch, refuse_unheard
from lightning_dterm.modules import checkpoints
from lightning_dterm.modules.actor_critic import ActorCritic, CriticConfig, LoraSettings
from lightning_dterm.modules.base import CodeModule
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.distributed import Means, all_sum, seed_everything, together, world_size
from lightning_dterm.modules.export import export_model
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.measure import measure
from lightning_dterm.modules.observe import observe
from lightning_dterm.modules.scoring import score_responses
from lightning_dterm.modules.sharding import adam_from_zero, data_parallel_mesh, has_shards, shard, whole
from lightning_dterm.modules.update import PPOUpdate
from lightning_dterm.rl.baseline import leave_one_out, spread_baseline
from lightning_dterm.rl.gae import generalized_advantages
from lightning_dterm.rl.generation import Responses, derive_seed
from lightning_dterm.rl.kl import KLController, kl_estimate
from lightning_dterm.rl.whitening import explained_variance, whiten
from lightning_dterm.types import CodeTask, Rollout

_NO_ATTRIBUTION = "add lightning_dterm.callbacks.TokenAttribution to trainer.callbacks"


class PPOModule(CodeModule):
    """Actor, critic, reference and weighting, trained by PPO on several, weighted, token-attributed rewards.

    Reading order: :meth:`training_step`, then the methods it calls, top to bottom. Rewards and attribution are
    callbacks (``RewardComputation``, ``TokenAttribution``); one call of :meth:`training_step` is one rollout and
    counts as one ``global_step``.

    Args:
        actor: Model to train.
        critic: Where values come from.
        lora: Adapters; None is full fine-tuning.
        generation: Sampling settings.
        ppo: The update.
        kl: KL to the reference.
        optimizer: Learning rates and schedule.
        weighting: How components are weighted; default uniform.
        task_encoder: Embeds tasks for the weighting; default a hashing bag of words of the description.
        seed: All randomness derives from it, counter-based: resume and rank layout do not change a rollout. None
            follows ``seed_everything``; a resumed run then goes on with the seed of its checkpoint.
        results: File for the JSON table of ``test``.
    """

    def __init__(
        self,
        actor: ActorConfig | None = None,
        critic: CriticConfig | None = None,
        lora: LoraSettings | None = None,
        generation: GenerationConfig | None = None,
        ppo: PPOConfig | None = None,
        kl: KLConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        weighting: Weighting | None = None,
        task_encoder: TaskEncoder | None = None,
        seed: int | None = None,
        results: str | None = None,
    ) -> None:
        self.actor_config = actor or ActorConfig()
        super().__init__(self.actor_config.path, generation or GenerationConfig(), seed, results)
        self.critic_config = critic or CriticConfig()
        self.lora = lora
        self.ppo = ppo or PPOConfig()
        self.kl = kl or KLConfig()
        self.optimizer_config = optimizer or OptimizerConfig()
        self.weighting: Weighting = weighting or UniformWeighting()
        self.task_encoder: TaskEncoder = task_encoder or HashingEncoder()
        self.kl_controller = KLController(self.kl.coef, self.kl.target, self.kl.horizon)
        self.component_names: tuple[str, ...] = ()
        self.automatic_optimization = False
        # Checkpoints hold only what trains; ``checkpoints.restore`` makes sure nothing that trains is missing.
        self.strict_loading = False
        self.policy: ActorCritic | None = None
        self.seconds: dict[str, float] = {}

    # --- construction ------------------------------------------------------------------------------------------------

    @property
    def language_model(self) -> PreTrainedModel:
        """The actor."""
        return self._policy.language_model

    @property
    def _policy(self) -> ActorCritic:
        assert self.policy is not None, "configure_model has not run"
        return self.policy

    def configure_model(self) -> None:
        """Build actor, critic and reference once, and shard them under FSDP2.

        Raises:
            ActorLoadError: If the actor cannot be loaded, or not be run (where weights are sharded: not there).
            ValueError: If the strategy asks for tensor parallelism.
        """
        if self.policy is not None:
            return
        mesh = data_parallel_mesh(self)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, "policy"))  # adapters start equal on every rank
            self.policy = ActorCritic(
                self.actor_config,
                self.critic_config,
                self.lora,
                with_reference=self.kl.placement != "none",
                sharded=mesh is not None,
            )
        names = next((c.component_names for c in self.trainer.callbacks if hasattr(c, "component_names")), ())  # type: ignore[attr-defined]
        if names:
            self.configure_weighting(tuple(names))
        if mesh is not None:
            shard(self.policy, mesh)
            checkpoints.check_before_loading(self, lambda checkpoint: checkpoints.check(self, checkpoint))

    def generate_responses(self, *args: Any, **kwargs: Any) -> Responses:
        """Sample from the actor, gathered on this rank for as long as that takes."""
        return self._policy.generate(*args, **kwargs)

    def configure_weighting(self, names: tuple[str, ...]) -> None:
        """Build the weighting's parameters for these components, the same on every rank."""
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, "weighting"))
            self.weighting.configure(names, self.task_encoder.dim)
        if not self.weighting.needs_embedding:
            if self.task_encoder.trains and self.trainer.state.fn == "fit":
                rank_zero_warn(
                    f"task_encoder {type(self.task_encoder).__name__} is not trained, because "
                    f"{type(self.weighting).__name__} reads no task embedding: choose another weighting "
                    "(configs/weighting/hypernetwork.yaml), or leave the task_encoder out"
                )
            self.task_encoder.requires_grad_(False)
        self.component_names = names
        # Its gradient is computed from gathered data, equal on all ranks: DDP has nothing to add.
        self._ddp_params_and_buffers_to_ignore = [
            f"{part}.{name}"
            for part, owner in (("weighting", self.weighting), ("task_encoder", self.task_encoder))
            for name, _ in (*owner.named_parameters(), *owner.named_buffers())
        ]

    def configure_optimizers(self) -> Optimizer:
        """One AdamW with a group for each part that trains: FSDP and DeepSpeed allow no second optimizer."""
        settings = self.optimizer_config
        groups: list[dict[str, Any]] = [
            {"name": "actor", "params": self._policy.actor_parameters(), "lr": settings.actor_lr},
            {"name": "critic", "params": self._policy.critic_parameters(), "lr": settings.critic_lr},
        ]
        pretrained = self.task_encoder.pretrained_parameters()
        own = set(map(id, pretrained))
        weighting = [p for p in self.meta_parameters() if id(p) not in own]
        meta = (("weighting", weighting, settings.weighting_lr), ("encoder", pretrained, settings.encoder_lr))
        groups += [{"name": name, "params": part, "lr": lr, "weight_decay": 0.0} for name, part, lr in meta if part]
        adam = AdamW(groups, betas=tuple(settings.betas), eps=settings.eps, weight_decay=settings.weight_decay)  # type: ignore[arg-type]
        return adam_from_zero(adam) if has_shards(self._policy) else adam

    def setup(self, stage: str) -> None:
        """Refuse, before any model is loaded, settings that would train wrongly without a word.

        Raises:
            ValueError: Under loss scaling, with weights in half precision, if the weighting compares samples of a
                prompt and there are too few, or if the schedule needs ``trainer.max_steps`` and that is not set.
        """
        super().setup(stage)
        if stage != "fit":
            return
        self.refuse_wrong_training("optimizer.schedule", self.optimizer_config.schedule)
        least = self.weighting.least_samples
        if self.generation.samples_per_prompt < least:
            raise ValueError(
                f"{type(self.weighting).__name__} compares the samples of a prompt: generation.samples_per_prompt must "
                f"be {least} or more"
            )

    def on_fit_start(self) -> None:
        """Refuse a run that has nothing to learn from, or callbacks that nothing would call.

        Raises:
            ValueError: Without a reward callback, or without an attribution callback.
            MisconfigurationException: see :func:`lightning_dterm.hooks.refuse_unheard`.
        """
        refuse_unheard(self.trainer.callbacks)  # type: ignore[attr-defined]
        if not self.component_names:
            raise ValueError("no reward callback: add lightning_dterm.callbacks.RewardComputation to trainer.callbacks")
        callbacks = [c for c in self.trainer.callbacks if isinstance(c, RolloutCallback)]  # type: ignore[attr-defined]
        if all(type(callback).on_rewards_end is RolloutCallback.on_rewards_end for callback in callbacks):
            raise ValueError(f"no attribution callback: {_NO_ATTRIBUTION}")

    # --- one iteration -----------------------------------------------------------------------------------------------

    def training_step(self, batch: list[CodeTask], batch_idx: int) -> None:
        """One PPO iteration on a batch of prompts."""
        self.seconds = {}
        started = time.perf_counter()
        seed_everything(derive_seed(self.seed, self.global_rank, self.global_step))
        means = Means()
        with self.phase("rollout"):
            rollout = self.collect(batch)
        with self.phase("reward"):
            dispatch(self.trainer, self, "on_rollout_end", rollout)
        with self.phase("weighting"):
            self.weigh(rollout)
        with self.phase("attribution"):
            dispatch(self.trainer, self, "on_rewards_end", rollout)
        with self.phase("advantage"):
            mask = self.compute_advantages(rollout, means)
        with self.phase("update"):
            trained_tokens = PPOUpdate(self, rollout, mask, means).run()
        dispatch(self.trainer, self, "on_update_end", rollout)
        self._count_rollout()
        means.add("throughput/update_tokens_per_s", world_size() * trained_tokens / max(self.seconds["update"], 1e-9))
        self._log(rollout, means, time.perf_counter() - started)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase to the callbacks and time it."""
        announce_phase(self.trainer, self, name)
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @torch.no_grad()
    def collect(self, batch: list[CodeTask]) -> Rollout:
        """Sample K responses a prompt and score them under actor, reference and critic."""
        per_prompt = self.generation.samples_per_prompt
        tasks = [task for task in batch for _ in range(per_prompt)]
        prompts = self.encode_prompts(batch, count=True)
        prompt_ids, prompt_mask = (part.repeat_interleave(per_prompt, 0) for part in prompts)
        keys = [(self.seed, "rollout", self.global_step, task.task_id, i % per_prompt) for i, task in enumerate(tasks)]
        settings = self.generation
        responses = self.respond(prompt_ids, prompt_mask, keys, settings.temperature, 1.0, tasks, settings.constrain)
        rollout = Rollout(
            tasks=tasks,
            group=torch.arange(len(batch)).repeat_interleave(per_prompt),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=responses.ids,
            response_mask=responses.mask,
            finished=responses.finished,
            texts=self.decode(responses),
            support=responses.support,
        )
        dispatch(self.trainer, self, "on_generation_end", rollout)  # rewards may run beside the forward passes
        given = (prompt_ids, prompt_mask, responses.ids, responses.mask)
        scores = score_responses(
            self,
            *given,
            temperature=settings.temperature,
            critic=True,
            support=rollout.support,
            sketch=self.weighting.sketch,
        )
        rollout.logprobs, rollout.ref_logprobs, rollout.values = scores.logprobs, scores.ref_logprobs, scores.values
        rollout.gradients = scores.gradients
        return rollout

    def weigh(self, rollout: Rollout) -> None:
        """Weights per sample from the task embedding; the weighting sees what the rollout taught; then rewards."""
        assert rollout.scores is not None
        mask = ~rollout.scores.isnan()
        task_types = [task.task_type for task in rollout.tasks]
        rollout.task_features, rollout.embeddings, rollout.alpha = together(self._weights, rollout, mask, task_types)
        observe(self, rollout)
        rollout.rewards, rollout.ceilings = self.weighting.rewards(
            rollout.scores, rollout.embeddings, rollout.group, task_types
        )

    @torch.no_grad()
    def _weights(self, rollout: Rollout, mask: Tensor, task_types: list[str]) -> tuple[Tensor, ...]:
        features = self.task_encoder.features(rollout.tasks)
        embeddings = self.task_encoder(features).to(self.device)
        return features, embeddings, self.weighting(embeddings, mask, task_types)

    @torch.no_grad()
    def compute_advantages(self, rollout: Rollout, means: Means) -> Tensor:
        """Token rewards, KL and the missing-EOS rule to advantages and returns; gives the update's mask ``[B, T]``.

        Raises:
            ValueError: If no callback has attributed the rewards to tokens.
        """
        if rollout.token_rewards is None:
            raise ValueError(f"no callback has set rollout.token_rewards: {_NO_ATTRIBUTION}")
        assert rollout.values is not None
        assert rollout.alpha is not None
        weighted = rollout.alpha.sum(-1) > 0
        if self.ppo.missing_eos == "mask":
            weighted = weighted & rollout.finished
        mask = rollout.response_mask.bool() & weighted.to(self.device)[:, None]
        rewards = rollout.token_rewards.to(self.device, torch.float32).clone()
        rows = torch.arange(len(rollout), device=self.device)
        last = rollout.response_mask.sum(-1).sub(1).clamp(min=0)
        if self.ppo.missing_eos == "penalty":
            rewards[rows, last] -= self.ppo.missing_eos_penalty * (~rollout.finished).float()
        rewards = rewards - self._kl_penalty(rollout, means)
        if self.ppo.baseline == "leave_one_out":
            others = leave_one_out((rewards * mask).sum(-1), rollout.group.to(self.device), mask.any(-1))
            rewards = rewards - spread_baseline(others, self._reward_places(rollout), last)
        rollout.advantages, rollout.returns = generalized_advantages(
            rewards, rollout.values, mask, self.ppo.gamma, self.ppo.lam
        )
        variance = explained_variance(rollout.values, rollout.returns, mask, all_sum)
        rollout.metrics["critic/explained_variance"] = variance
        if self.ppo.whiten_advantages:
            rollout.advantages = whiten(rollout.advantages, mask, all_sum)
        measure(rollout, mask, self.overlong_prompts, means)
        return mask

    def _reward_places(self, rollout: Rollout) -> Tensor:
        """Where attribution may put rewards, ``[B, T]`` bool; where it did, if the callback did not say."""
        assert rollout.token_rewards is not None
        places = rollout.token_rewards != 0 if rollout.reward_places is None else rollout.reward_places
        return places.to(self.device)

    def _kl_penalty(self, rollout: Rollout, means: Means) -> Tensor | float:
        if rollout.ref_logprobs is None:
            return 0.0
        assert rollout.logprobs is not None
        own_mask = rollout.response_mask
        k1 = kl_estimate(rollout.logprobs, rollout.ref_logprobs, "k1")
        sums = all_sum(torch.stack([(k1 * own_mask).sum().double(), k1.new_tensor(len(rollout)).double()]))
        coef = self.kl_controller.coef
        per_sequence = float(sums[0] / sums[1])
        self.kl_controller.update(per_sequence, int(sums[1]))
        if self.kl.placement == "loss":
            coef = self.kl_controller.coef  # the update, which is still to come, reads it there
        means.add("kl/sequence", (k1 * own_mask).sum(), len(rollout))
        means.add_masked("kl/token", k1, own_mask)
        means.add("kl/coef", coef)
        if self.kl.placement != "reward":
            return 0.0
        return coef * kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.kl.estimator) * own_mask

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def lr_factor(self) -> float:
        """Warm-up and schedule as a pure function of the rollouts done, so that resume needs no scheduler state."""
        return self.optimizer_config.lr_factor(self.global_step, self.trainer.max_steps)

    def meta_parameters(self) -> list[nn.Parameter]:
        """What the meta-step trains: the weighting, and the task encoder where it trains."""
        return [p for part in (self.weighting, self.task_encoder) for p in part.parameters() if p.requires_grad]

    def clip_gradients_to(self, limit: float) -> Tensor:
        """Clip the joint gradient norm of actor and critic; returns the norm before. Handles FSDP2's sharded ones."""
        parameters = [*self._policy.actor_parameters(), *self._policy.critic_parameters()]
        return whole(nn.utils.clip_grad_norm_(parameters, limit))

    def _count_rollout(self) -> None:
        """Advance ``global_step`` by one for the whole rollout, however many optimizer steps it took."""
        optimizer = self.optimizers()
        optimizer._on_before_step()  # type: ignore[union-attr]
        optimizer._on_after_step()  # type: ignore[union-attr]

    def _log(self, rollout: Rollout, means: Means, seconds: float) -> None:
        tokens = float(rollout.response_mask.sum())
        means.add("time/iteration", seconds)
        for name, value in self.seconds.items():
            means.add(f"time/{name}", value)
            means.add(f"time_share/{name}", value / seconds)
        means.add("throughput/rollout_tokens_per_s", world_size() * tokens / max(self.seconds["rollout"], 1e-9))
        for name, value in (*rollout.metrics.items(), *self.weighting.metrics().items()):
            if math.isfinite(value) and name not in means:
                means.add(name, value)
        merged = means.reduce()
        rollout.metrics.update(merged)
        self.log_step(merged)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains; base and reference are reloaded from ``actor.path``."""
        checkpoints.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore, or refuse with a clear message."""
        checkpoints.restore(self, checkpoint)

    def _export_model(self, folder: Path, merge: bool) -> None:
        export_model(self._policy.actor, folder, merge, self.actor_config, self.lora, self.critic_config)
