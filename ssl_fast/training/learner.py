"""One training step: nets, loss, optimizer and random generators of a run.

Everything random in step k is drawn from (seed, k), and in each of several processes from (seed, k, rank).
"""

import itertools
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import distributed
from ..data import transforms as augmentation
from ..data.io.front_ends import FrontEnd, front_end_named
from ..losses import ExtraNegatives
from ..models import Localizer, Momentum, build
from ..models.checkpoints import load_backbone
from ..models.storage import fitted
from ..ops import checks
from ..ops.reference import accumulate_dtype
from ..reproducibility import derived_seed
from ..stages import Stages
from .recipes import Recipe


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and the samples."""


def bfloat16_native() -> bool:
    """True where this processor multiplies bfloat16 itself; where it does not, bfloat16 is slower than float32."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # where torch cannot tell: no
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def precision_of(recipe: Recipe, device: str | torch.device = "cpu") -> torch.dtype:
    """dtype of the nets' arithmetic: `recipe.precision`, or for "auto" bfloat16 where the hardware multiplies it."""
    if recipe.precision != "auto":
        return getattr(torch, recipe.precision)
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if bfloat16_native() else torch.float32


def multiplied_as_they_are(features: Tensor) -> bool:
    """True where the compiled kernels multiply features of this dtype on their device without widening them first.
    Plain PyTorch would round cosines to 16 bits, and a CPU without products of bfloat16 loses time by them."""
    if not checks.use_compiled("auto", features):
        return False
    if features.device.type == "cuda":
        return True
    return features.dtype == torch.bfloat16 and checks.extension.instruction_set() in ("avx512_bf16", "amx")


class _Features(nn.Module):
    """All features of a step from one forward pass, which DistributedDataParallel can wrap."""

    def __init__(self, localizer: Localizer, loss: nn.Module):
        super().__init__()
        self.localizer, self.loss = localizer, loss  # the loss for its parameters, whose gradients go the same way

    def forward(self, images: Tensor, spectrograms: Tensor, transformed: Tensor | None) -> dict[str, Tensor]:
        features = self.localizer.visual_features(images) | self.localizer.audio_features(spectrograms)
        if transformed is not None:
            features["transformed"] = self.localizer.visual_features(transformed)["visual"]
        return features


def _parted(features: Mapping[str, Tensor], sounds: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features with only the first `sounds` rows of those of sounds, and these features of all other rows."""
    further = {name: x[sounds:] for name, x in features.items() if name.startswith("audio")}
    return {**features, **{name: features[name][:sounds] for name in further}}, further


class Learner:
    """State of a run: localizer, momentum nets, optimizer. `step` is one optimisation step on one batch.

    front_end: of the waveforms or spectrograms of a batch; None: the recipe's. compile: the nets go through
    torch.compile. init, audio_init: files of weights that the image net and the audio net start from, see
    `checkpoints.load_backbone`; `unused` are their keys that have no place there.
    In a torch.distributed process group all processes have one each, and step together; their weights are the same.
    gather: the loss is that of their batches joined, not the mean of the losses of each. sync_batch_norm: batch norm
    over the joined batch too, on CUDA only.
    `stages` has the time of the parts of all steps so far; on CUDA that of their launches.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int = 0,
        device: str = "cpu",
        compile: bool = False,
        *,
        front_end: FrontEnd | None = None,
        init: str | os.PathLike | None = None,
        audio_init: str | os.PathLike | None = None,
        gather: bool = False,
        sync_batch_norm: bool = False,
    ):
        self.rank, self.processes = distributed.rank_and_world_size()
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.precision, self.stages = precision_of(recipe, device), Stages()
        torch.manual_seed(derived_seed(seed, 0))
        self.front_end = front_end_named(recipe.front_end) if front_end is None else front_end
        self.localizer = build(recipe.model).to(self.device)
        starts = (self.localizer.visual_net, init), (self.localizer.audio_net, audio_init)
        self.unused = [key for net, path in starts if path is not None for key in load_backbone(net, path)]
        if sync_batch_norm:  # in place: the localizer itself is no batch norm
            nn.SyncBatchNorm.convert_sync_batchnorm(self.localizer)
        self.momentum = None
        if recipe.momentum_decay is not None:
            self.momentum = Momentum(self.localizer, recipe.momentum_decay).to(self.device)
        if compile:  # in place: names of the weights stay
            for net in (self.localizer.visual_net, self.localizer.audio_net):
                net.compile()
        self.loss = recipe.build_loss().to(self.device)
        self.net = self.features = _Features(self.localizer, self.loss)
        if self.processes > 1:
            self.net = nn.parallel.DistributedDataParallel(
                self.features, find_unused_parameters=recipe.model.is_external
            )
        self.group = dist.group.WORLD if gather else None
        make = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
        self.parameters = [p for p in self.features.parameters() if p.requires_grad]
        self.optimizer = make(self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    def state(self) -> dict:
        return {
            "localizer": self.localizer.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "momentum": None if self.momentum is None else self.momentum.state_dict(),
        }

    def load(self, state: dict) -> None:
        """Go on from a `state`, after `state["step"]` steps. ValueError where it is not that of such a learner; then
        nothing is loaded. Options of the optimizer are the recipe's."""
        localizer = fitted(state["localizer"], self.localizer.state_dict(), exact=True)
        try:  # checkpoints from before losses had parameters have none of it
            loss = fitted(state.get("loss", {}), self.loss.state_dict(), exact=True)
        except ValueError as error:
            raise ValueError(f"loss: {error}") from error
        optimizer = self._optimizer_state(state["optimizer"], state["step"])
        scaler, own = state.get("scaler", {}), self.scaler.state_dict()
        if scaler.keys() != own.keys() or not all(
            isinstance(x, (int, float)) and 0 <= x < math.inf for x in scaler.values()
        ):
            raise ValueError(f"scaler: expected numbers {', '.join(own) or '(none)'}, got {scaler!r:.200}")
        if (self.momentum is None) != (state["momentum"] is None):
            raise ValueError(f"momentum: expected that of {self.recipe.method}, got {type(state['momentum']).__name__}")
        if self.momentum is not None:
            self.momentum.load_state_dict(fitted(state["momentum"], self.momentum.state_dict(), exact=True))
        self.localizer.load_state_dict(localizer)
        self.loss.load_state_dict(loss)
        self.optimizer.load_state_dict(optimizer)
        if own:
            self.scaler.load_state_dict(scaler)

    def _optimizer_state(self, state: object, steps: int) -> dict:
        """State of the optimizer after so many steps, in the memory formats of the parameters: fused kernels of Adam do
        not look whether those of both are the same. ValueError where it does not fit."""
        moments = state.get("state") if isinstance(state, Mapping) else None
        if not isinstance(moments, Mapping) or not moments.keys() <= set(range(len(self.parameters))):
            raise ValueError(f"optimizer: expected the state of {len(self.parameters)} parameters")
        loaded = {}
        for index, moment in moments.items():  # none of parameters that never had a gradient
            parameter = self.parameters[index]
            try:
                like = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
                found = fitted(moment, like, exact=True)
                if not 0 <= found["step"] <= steps or (found["exp_avg_sq"] < 0).any():
                    raise ValueError(f"expected at most {steps} steps, and squares >= 0, got {found['step']:g} steps")
            except ValueError as error:
                raise ValueError(f"optimizer: parameter {index}: {error}") from error
            for name in ("exp_avg", "exp_avg_sq"):
                found[name] = torch.empty_like(parameter).copy_(found[name])
            loaded[index] = found
        return {"state": loaded, "param_groups": self.optimizer.state_dict()["param_groups"]}

    def _view(self, kind: str, images: Tensor, sounds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One view of a batch: uint8 images (B, 3, H, W) and waveforms (B, n) or spectrograms (B, 1, F, T) ->
        normalised images and spectrograms, float32, augmented in whatever was not done to the frames."""
        recipe, augmented = self.recipe, kind == "augmented"
        if augmented and recipe.augmentation == "shift":
            images = augmentation.shift_and_flip(images, generator, vertical=recipe.vertical_flip)
        elif augmented and recipe.augmentation == "crop":
            images = augmentation.random_resized_crop(images, generator, scale=(recipe.crop_area, 1.0))
            images = augmentation.horizontal_flip(images, generator)
        if augmented and recipe.augmentation in ("shift", "crop"):
            sounds = augmentation.roll(sounds, generator)
        images, sounds = images.to(self.device), sounds.to(self.device)
        if sounds.ndim == 2:
            sounds = self.front_end.spectrogram(sounds)[:, None]
        if augmented and recipe.policy is not None:
            images = recipe.policy.colours(images, generator)
        if augmented and recipe.masks != "none":
            sounds = augmentation.MASKS[recipe.masks](sounds, generator, self.front_end.silence)
        return self.localizer.normalize_images(images), self.localizer.normalize_spectrograms(sounds)

    def net_inputs(self, images: Tensor, sounds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs of the nets for a batch (see `batch_loss`): images (V B, 3, H, W) and spectrograms (V B, 1, F, T),
        view by view. ValueError for another number of views than the recipe's."""
        views = self.recipe.views
        if not images.shape[1] == sounds.shape[1] == len(views):
            got = f"images {tuple(images.shape)} and sounds {tuple(sounds.shape)}"
            raise ValueError(f"views: expected {len(views)} of each sample, (B, {len(views)}, ...), got {got}")
        inputs = [self._view(*view, generator) for view in zip(views, images.unbind(1), sounds.unbind(1))]
        if len(inputs) == 1:
            return inputs[0]
        return torch.cat([pair[0] for pair in inputs]), torch.cat([pair[1] for pair in inputs])

    def _features(self, net: nn.Module, *inputs) -> dict[str, Tensor]:
        """Raw features in the dtype that the nets compute in, where kernels multiply it, else float32. The losses'
        cosines and logits are float32 either way."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            features = net(*inputs)
        return {name: x if multiplied_as_they_are(x) else x.to(accumulate_dtype(x)) for name, x in features.items()}

    def _extra_negatives(self, *further: Mapping[str, Tensor]) -> ExtraNegatives:
        """What the loss takes of the features of negative sounds, of slavc also of those by the momentum nets."""
        names = ("audio", "audio_projected", "audio_loc", "audio_avc")
        parts = [one[name] for one in further for name in names if name in one]
        return ExtraNegatives(parts, weight=self.recipe.negatives_weight)

    def batch_loss(
        self,
        images: Tensor,
        sounds: Tensor,
        progress: float,
        generator: torch.Generator,
        negatives: Tensor | None = None,
        alone: bool = False,
    ) -> Tensor:
        """The recipe's loss at `progress` of the run, of a batch of what `views.Views` gives -> scalar.

        images: uint8 (B, V, 3, H, W) for V views. sounds: waveforms (B, V, n), or spectrograms (B, V, 1, F, T).
        negatives: waveforms (K, n) of sounds that are nobody's positive; they go through the nets with the others.
        Augmentation draws from `generator`, dropout from torch's global generator. alone: without the other processes.
        """
        recipe, views = self.recipe, len(self.recipe.views)
        with self.stages("data"):
            images, spectrograms = self.net_inputs(images, sounds, generator)
        changes: dict[str, typing.Any] = {"group": None if alone else self.group}
        if "mean_weight" in self.loss.options:
            changes["mean_weight"] = recipe.mean_weight_at(progress)
        transform = None
        if recipe.method == "ssl_tie":
            transform = augmentation.TRANSFORMS[recipe.transform](len(images), generator)
        if recipe.method == "sspl":  # one sound for both images
            spectrograms = spectrograms.chunk(views)[0]
        heard = spectrograms
        if negatives is not None and len(negatives):  # in one pass: batch norm has one set of statistics
            with self.stages("data"):
                further = self.front_end.spectrogram(negatives.to(self.device))[:, None]
                heard = torch.cat([spectrograms, self.localizer.normalize_spectrograms(further)])
        with self.stages("nets"):
            features = self._features(
                self.features if alone else self.net, images, heard, None if transform is None else transform(images)
            )
        features, further = _parted(features, len(spectrograms))
        if negatives is not None:
            changes["extra_negatives"] = self._extra_negatives(further)
        if recipe.method == "ssl_align":
            split = {name: value.chunk(views) for name, value in features.items()}
            if "visual_projected" in split:
                changes["projected_visuals"] = split["visual_projected"]
                changes["projected_audios"] = split["audio_projected"]
            return self.loss(split["visual"], split["audio"], **changes)
        if recipe.method == "slavc":
            names = ("visual_loc", "visual_avc", "audio_loc", "audio_avc")
            slow = None
            if self.momentum is not None:
                with self.stages("nets"):
                    slow = self._features(self.momentum, self.localizer, images, heard)
                slow, slow_further = _parted(slow, len(spectrograms))
                slow = [slow[name] for name in names]
                if negatives is not None:
                    changes["extra_negatives"] = self._extra_negatives(further, slow_further)
            return self.loss(*(features[name] for name in names), momentum=slow, **changes)
        if recipe.method == "ssl_tie":
            return self.loss(features["visual"], features["audio"], features["transformed"], transform, **changes)
        if recipe.method == "hard_positives":
            (visual, similar_visual), (audio, similar_audio) = (
                features[name].chunk(views) for name in ("visual", "audio")
            )
            return self.loss(visual, audio, similar_visual, similar_audio, **changes)
        if recipe.method == "sspl":
            # widened, as the loss has no map of all pairs, and nets of its own that are not under autocast
            audio, visual = (x.to(accumulate_dtype(x)) for x in (features["audio"], features["visual"]))
            visuals = [self.localizer.aligned(one, audio) for one in visual.chunk(views)]
            return self.loss(visuals, audio, self.localizer.predictor, **changes)
        if recipe.method == "dense_av":
            quiet = self.localizer.normalize_spectrograms(spectrograms.new_full((1, 1, 1, 1), self.front_end.quiet))
            changes["silent"] = self.localizer.tokens_of_frames((spectrograms <= quiet).all(2)[:, 0])
            return self.loss(features["visual"], features["audio"], generator=generator, **changes)
        if recipe.leaves_out_l1_at(progress):
            changes["weights"] = (0.0, 0.0, 0.0)
        return self.loss(features["visual"], features["audio"], **changes)

    def step(
        self,
        number: int,
        images: Tensor,
        sounds: Tensor,
        progress: float,
        ids: list[str],
        negatives: Tensor | None = None,
    ) -> dict[str, float]:
        """Step `number` on one batch (see `batch_loss`); its figures.

        negatives: waveforms (K, n), those of `negatives.NegativeSounds.keys`, of each part of the batch as many.

        ValueError for another number of these than the recipe's. TrainingError naming `ids` where loss or gradient is
        not finite; with float16 a gradient may be, of which there is no norm then, as long as a smaller scale of the
        loss can be tried.
        """
        draw = number * self.processes + self.rank
        torch.manual_seed(derived_seed(self.seed, 2, draw))
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 3, draw))
        rate = self.recipe.learning_rate_at(number, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.localizer.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts, value = self.recipe.accumulation, 0.0
        further: Sequence[Tensor | None] = [None] * parts
        if self.recipe.negatives:
            further = self._own_negatives(negatives).tensor_split(parts)
        for image, sound, negative in zip(images.chunk(parts), sounds.chunk(parts), further):
            with self.stages("loss"):
                loss = self.batch_loss(image, sound, progress, generator, negative) / parts
            with self.stages("backward"):
                self.scaler.scale(loss).backward()
            value += loss.item()
        value = distributed.total(value / self.processes, self.device)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).item()
        scale = self.scaler.get_scale()
        # beyond float16 for its scale alone: the scaler leaves this step out, and halves the scale
        skipped = math.isfinite(value) and not math.isfinite(norm) and scale > 1
        for name, x in (("loss", value), ("norm of the gradient", norm)):
            if not (math.isfinite(x) or skipped):
                every = distributed.collect(ids, len(ids) * self.processes)
                raise TrainingError(f"step {number}: the {name} is {x} for the samples {', '.join(every)}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        figures = {"loss": value, "learning_rate": rate, "mean_weight": self.recipe.mean_weight_at(progress)}
        if not skipped:
            figures["gradient_norm"] = norm
        return figures | ({"loss_scale": scale} if self.scaler.is_enabled() else {})

    def _own_negatives(self, negatives: Tensor | None) -> Tensor:
        """The negative sounds of a step of this process, perhaps none, where others have them."""
        if negatives is None:
            negatives = torch.empty(0, self.front_end.samples)
        total = sum(self.recipe.negatives.values())
        wanted = self.recipe.accumulation * (total if self.group is None else len(distributed.shard(total)))
        if len(negatives) != wanted:
            kinds = ", ".join(f"{kind}={count}" for kind, count in self.recipe.negatives.items())
            raise ValueError(f"negatives: expected {wanted} waveforms for {kinds}, got {len(negatives)}")
        return negatives

    def broadcast_buffers(self) -> None:
        """Give all processes the batch statistics of the first, which its checkpoints hold. Each step begins with that
        too, but not evaluation."""
        if self.processes > 1:
            for net in filter(None, (self.localizer, self.momentum)):
                for buffer in net.buffers():
                    dist.broadcast(buffer, 0)

    @torch.no_grad()
    def validation_losses(self, batches: Iterable[tuple[Tensor, Tensor]], first: int = 0) -> list[float]:
        """Losses of batches (images, sounds) number `first`, first + 1, ... in evaluation mode, in this process alone.
        The same augmentation every time."""
        modules = [self.localizer] if self.momentum is None else [self.localizer, self.momentum]
        training = [module.training for module in modules]
        for module in modules:
            module.eval()
        draws = (torch.Generator().manual_seed(derived_seed(self.seed, 4, k)) for k in itertools.count(first))
        losses = [self.batch_loss(*batch, 1.0, draw, alone=True).item() for batch, draw in zip(batches, draws)]
        for module, before in zip(modules, training):
            module.train(before)
        return losses

    def chance(self) -> float:
        """The loss where all features are alike, as in a collapsed net: log(batch size), times the number of terms, in
        which negative sounds count as so many samples more; -1 for sspl, which has no negatives."""
        together = self.recipe.batch_size // self.recipe.accumulation
        if self.group is None:
            together //= self.processes
        shapes = {"visual": (together, 2, 1, 1), "audio": (together, 2)}
        visual, audio = (torch.ones(shapes[name]) for name in ("visual", "audio"))
        method, projected = self.recipe.method, self.recipe.model.projection is not None
        count, weight = sum(self.recipe.negatives.values()), self.recipe.negatives_weight
        changes = {}
        if count:
            parts = {"ssl_align": 1 + projected, "slavc": 2 if self.momentum is None else 4}.get(method, 1)
            changes["extra_negatives"] = ExtraNegatives([torch.ones(count, 2)] * parts, weight=weight)
        with torch.no_grad():
            if method == "ssl_align":
                visuals, audios = ([x] * len(self.recipe.views) for x in (visual, audio))
                extra = {"projected_visuals": audios, "projected_audios": audios} if projected else {}
                loss = self.loss(visuals, audios, **extra, **changes)
            elif method == "slavc":
                four = (visual, visual, audio, audio)
                loss = self.loss(*four, momentum=None if self.momentum is None else four, **changes)
            elif method == "ssl_tie":
                loss = self.loss(visual, audio, visual, lambda maps: maps, **changes)
            elif method == "hard_positives":
                loss = self.loss(visual, audio, visual, audio, **changes)
            elif method == "dense_av":  # without regularisers
                loss = (math.log(together + count * weight) + math.log(together)) / 2
            elif method == "sspl":
                loss = self.loss([visual, visual], audio, lambda features: (audio, audio))
            else:
                loss = self.loss(visual, audio, **changes)
        return float(loss)
