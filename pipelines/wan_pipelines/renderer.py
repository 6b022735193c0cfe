"""Three stages from a plan to a video file: encode, denoise, decode. Each reads and writes files.

A stage can be stopped at any callback and started again from its input file; `denoise` goes on from its last
checkpoint, with the same result to the last bit. Knows no queue: what calls it decides when and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from wan_pipelines.blending import Blend, draw_noise
from wan_pipelines.clip_frames import clip_frames, retiming
from wan_pipelines.colour import slid
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.conditions import EncodeReport, Known, Media, Texts, check_clip, read_known, read_last, show, tell
from wan_pipelines.denoise import Guidance, denoise
from wan_pipelines.errors import RenderError
from wan_pipelines.framing import frames_between, visible
from wan_pipelines.handover import handed_over
from wan_pipelines.hd import second_seed
from wan_pipelines.load import Checkpoint, ensure_checkpoint, silence_progress_bars
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer, VideoFacts
from wan_pipelines.peaks import Stage
from wan_pipelines.placed import LoadOptions, Placed, load_placed
from wan_pipelines.placement import Placement
from wan_pipelines.plan import RenderPlan, check_media
from wan_pipelines.profile import Profile
from wan_pipelines.refine import noised
from wan_pipelines.resume import Bookmark
from wan_pipelines.s2v.chain_render import ChainRender
from wan_pipelines.s2v.clips import Chain, Clip
from wan_pipelines.s2v.shown import ShownFrames
from wan_pipelines.s2v.speech import FeatureCache, SpeechEncoder, hear
from wan_pipelines.samplers import make_sampler
from wan_pipelines.seams import Before, Seam, first_look, metadata_for, slides
from wan_pipelines.tensorfile import load_tensors, save_tensors
from wan_pipelines.text import TextStates, encode_text
from wan_pipelines.vae import stream_decode


@dataclass(frozen=True, slots=True)
class Renderer:
    """A loaded checkpoint that renders plans, one at a time."""

    profile: Profile
    checkpoint: Checkpoint
    device: torch.device
    #: seconds between two checkpoints of the denoise loop; 0 writes one after every step
    checkpoint_every_s: float = 30.0
    #: brings the parts to the device for their stage; None when all of them stay there
    placed: Placed | None = None
    #: of a model that listens; None makes one for each job, without a cache
    speech: SpeechEncoder | None = None

    @classmethod
    def load(
        cls,
        profile: Profile,
        folder: Path,
        device: str,
        checkpoint_every_s: float = 30.0,
        options: LoadOptions | None = None,
    ) -> Renderer:
        """Load the checkpoint in `folder`, in any layout; one with random weights is built there first.

        `device` is a torch device or "auto". Raises CheckpointError, and PlacementError when it does not fit.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        silence_progress_bars()
        ensure_checkpoint(profile, folder)
        options = options or LoadOptions()
        placed = load_placed(profile, folder, torch.device(device), options)
        encoder, cache = placed.checkpoint.audio_encoder, options.speech_cache
        speech = SpeechEncoder.of(encoder, FeatureCache(cache) if cache else None) if encoder else None
        return cls(profile, placed.checkpoint, torch.device(device), checkpoint_every_s, placed, speech)

    @torch.inference_mode()
    def encode(self, plan: RenderPlan, media: Media, out: Path, beat: Callable[[], None]) -> EncodeReport:
        """Texts and media to conditions in `out`. `beat` is called between pieces of work and may raise.

        Raises PlacementError when there is not enough memory for the plan.
        """
        self._check_part(plan)
        check_media(self.profile, media.files)
        pictures = min(1, media.pictures)
        placement = self.place(plan, pictures)
        beat()
        with self._stage("text"):
            prompt = self._encode_text(plan.prompt)
            negative = self._encode_text(plan.negative_prompt) if plan.is_guided else None
        known = read_known(plan, media, self.device, beat)
        conditioning = self._tell(known, (prompt.states, negative.states if negative else None), beat)
        conditioning = self._listen(self._show(conditioning, plan, known), plan, media)
        about = {"plan": plan.key, "media": media.digest(), "known": str(pictures)}
        save_tensors(out, conditioning.tensors(), {**about, **first_look(plan, known)})
        return EncodeReport(
            prompt_tokens=prompt.tokens,
            prompt_tokens_dropped=prompt.dropped,
            negative_tokens_dropped=negative.dropped if negative else 0,
            negative_used=negative is not None,
            placement=placement.to_json() if placement else None,
        )

    @torch.inference_mode()
    def go_on(self, part: RenderPlan, media: Media, before: Before, out: Path, beat: Callable[[], None]) -> None:
        """Conditions of a segment that goes on from the one before (`RenderPlan.parts`), in `out`, as `encode` does."""
        self._check_part(part)
        self.place(part, 1)
        seam = Seam(part, self.checkpoint.vae, self.device, self._stage)
        known, colours = seam.known(before, read_last(part, media, self.device), beat)
        conditioning = self._show(self._tell(known, before.texts(self.device), beat), part, known)
        about = {"plan": part.key, "media": media.digest(), "before": before.digest(), "known": "1"}
        save_tensors(out, conditioning.tensors(), {**about, **colours})

    @torch.inference_mode()
    def denoise(
        self,
        plan: RenderPlan,
        conditioning: Path,
        out: Path,
        on_step: Callable[[int, int], None],
        checkpoint: Path | None = None,
        begun: Path | None = None,
    ) -> None:
        """Noise to latents in `out`. `on_step(done, steps)` comes after each step and may raise.

        The second of two passes (`RenderPlan.passes`) begins with `begun`, the latents of the first, enlarged. Each
        window of a step counts as one. Between two clips of a chain it comes again and again with the same numbers.
        When `checkpoint` was written for the same plan and media, goes on from there; any other one is ignored.
        """
        self._check_part(plan)
        metadata = metadata_for(plan, conditioning)
        self.place(plan, int(metadata["known"]))
        conditions = Conditioning(**load_tensors(conditioning, self.device))
        mark = Bookmark(checkpoint, metadata, self.checkpoint_every_s)
        if plan.clips is None:
            seed = plan.seed if begun is None else second_seed(plan.seed)
            noise = self._noise(plan, seed, plan.windows[-1].stop)
            start = noise if begun is None else noised(load_tensors(begun, self.device)["latents"], plan, noise)
            total = plan.steps * len(plan.windows)
            made = {"latents": self._sample(plan, start, conditions, mark, lambda done: on_step(done, total))}
        else:
            made = self._sample_clips(plan, self._chain(plan.clips, out), conditions, mark, on_step)
        save_tensors(out, made, metadata)

    @torch.inference_mode()
    def decode(
        self,
        plan: RenderPlan,
        latents: Path,
        out: Path,
        sound: Path | None,
        on_frames: Callable[[int, int], None],
        clip: Path | None = None,
    ) -> VideoFacts:
        """Latents to an MP4 in `out`, behind the frames of `clip` that the plan counts; of segments once joined.

        `on_frames(done, frames)` comes after each chunk and may raise.
        """
        self._check_plan(plan)
        check_clip(plan, clip)
        metadata = metadata_for(plan, latents)
        self.place(plan, int(metadata["known"]))
        before = 1 if plan.handover_frames else 0
        frames = self._new_frames(plan, latents, before)
        shown = (plan.width, plan.height, plan.shown_fps, plan.shown_frames)
        spec = Mp4Spec(*shown, sound=sound, watermark=plan.watermark, retiming=retiming(plan))
        with self._stage("decode"), Mp4Writer(out, spec) as writer:
            done = 0
            new = slid(frames, plan.clip_frames - before, slides(plan, metadata))
            for chunk in handed_over(clip_frames(plan, clip), new, plan.handover_frames):
                writer.write(chunk)
                done += chunk.shape[0]
                on_frames(done, spec.incoming)
        return writer.facts

    def _sample(
        self, plan: RenderPlan, noise: Tensor, conditions: Conditioning, mark: Bookmark, on_step: Callable[[int], None]
    ) -> Tensor:
        """Latents from noise, or from where the bookmark is; `on_step` gets the windows of steps that are done."""
        sampler, windows = make_sampler(plan.sampler, plan.sigmas), plan.windows
        found = mark.take_up(sampler, self.device)
        blend = Blend(windows, lambda done: on_step(sampler.position * len(windows) + done))

        def after_step(done: int, current: Tensor) -> None:
            mark.offer(sampler, current)
            on_step(done * len(windows))

        experts = replace(self.checkpoint.experts, boundary=plan.boundary)
        guidance = Guidance(plan.guidance_high, plan.guidance_low)
        with self._stage("denoise"):
            return denoise(experts, noise if found is None else found, conditions, sampler, guidance, after_step, blend)

    def _sample_clips(
        self,
        plan: RenderPlan,
        clips: ChainRender,
        conditions: Conditioning,
        mark: Bookmark,
        on_step: Callable[[int, int], None],
    ) -> dict[str, Tensor]:
        """The same of clips that follow each other; steps are counted over all of them."""
        total = plan.steps * len(clips.chain.clips)

        def sample(clip: Clip, told: Conditioning) -> Tensor:
            before = plan.steps * clip.number
            noise = self._noise(plan, clip.seed, clip.latent_frames)
            return self._sample(plan, noise, told, mark, lambda done: on_step(before + done, total))

        def beat() -> None:
            done = sum(name.startswith("latents") for name in mark.held)
            on_step(plan.steps * done, total)

        return clips.denoise(conditions, mark.held, sample, beat)

    def _chain(self, clips: Chain, latents: Path) -> ChainRender:
        return ChainRender(clips, self.checkpoint.vae, self.device, self._stage, ShownFrames(latents))

    def _new_frames(self, plan: RenderPlan, latents: Path, before: int) -> Iterator[Tensor]:
        """The sampled frames that are shown and some before, [f, 3, visible height, visible width] in [0, 1]."""
        if plan.clips is not None:
            chunks = self._chain(plan.clips, latents).frames(load_tensors(latents, torch.device("cpu")))
        else:
            stop = plan.prefix_frames + plan.frames - plan.clip_frames
            decoded = stream_decode(self.checkpoint.vae, load_tensors(latents, self.device)["latents"])
            chunks = frames_between(decoded, plan.prefix_frames - before, stop)
        for chunk in chunks:
            yield visible(chunk, plan)

    def _check_plan(self, plan: RenderPlan) -> None:
        if plan.model != self.profile.served_as:
            raise RenderError(f"the plan is for model {plan.model}, this worker has {self.profile.served_as}")

    def _check_part(self, plan: RenderPlan) -> None:
        self._check_plan(plan)
        if len(plan.segments) > 1:
            raise RenderError(f"the plan has {len(plan.segments)} segments, which are made one by one")

    def _encode_text(self, text: str) -> TextStates:
        parts = self.checkpoint
        return encode_text(parts.tokenizer, parts.text_encoder, text, self.profile.text_len)

    def _tell(self, known: Known, texts: Texts, beat: Callable[[], None]) -> Conditioning:
        """The families that see frames see them through the autoencoder."""
        with self._stage("encode") if self.profile.conditioning != "text" else nullcontext():
            return tell(self.profile, self.checkpoint.vae, known, texts, beat)

    def _show(self, conditioning: Conditioning, plan: RenderPlan, known: Known) -> Conditioning:
        """Adds the states of the image encoder where there is one."""
        encoder = self.checkpoint.image_encoder
        if not self.profile.clip_pictures or encoder is None:
            return conditioning
        with self._stage("image"):
            return replace(conditioning, image=show(self.profile, encoder, plan, known))

    def _listen(self, conditioning: Conditioning, plan: RenderPlan, media: Media) -> Conditioning:
        """Adds what the clips of a chain hear, one behind the other."""
        encoder = self.checkpoint.audio_encoder
        if plan.clips is None or encoder is None or media.driving_audio is None:
            return conditioning
        with self._stage("audio"):
            heard = hear(self.speech or SpeechEncoder.of(encoder), media.driving_audio, plan.clips)
        return replace(conditioning, audio=torch.cat(heard, dim=-1)[None])

    def place(self, plan: RenderPlan, known: int) -> Placement | None:
        """Keep the weights as the plan needs it; before each stage, because another job may have run in between.

        `known` counts the pictures that condition the video. Raises PlacementError when there is not enough memory.
        """
        return None if self.placed is None else self.placed.fit(plan, known)

    def _stage(self, name: Stage) -> AbstractContextManager[None]:
        """Inside, what computes in this stage is on the device."""
        return nullcontext() if self.placed is None else self.placed.keeper.stage(name)

    def _noise(self, plan: RenderPlan, seed: int, latent_frames: int) -> Tensor:
        """Standard normal noise [1, z, T, h, w] in float32, drawn on the CPU: a seed means the same on every device."""
        stride = self.checkpoint.vae_stride
        size = (plan.sample_height // stride, plan.sample_width // stride)
        shape = (1, self.checkpoint.vae.config["z_dim"], latent_frames, *size)
        return draw_noise(shape, plan.windows, seed).to(self.device)
