"""A task's output: the link to the video and `output_meta`, which tells what really ran and what was not honoured."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from wan_pipelines.plan import RenderPlan, beyond_training
from wan_pipelines.profile import TEMPORAL_STRIDE, Profile
from wan_pipelines.windows import frames_of
from wan_server.job import Job
from wan_server.media import VISUAL
from wan_server.probe import Probe

Json = dict[str, Any]

#: differences of less than two video frames are not worth a word
SOUND_SLACK_S: Final = 0.1
#: rates that differ by less, as 23.976 and 24 do, show the same frames
RATE_SLACK: Final = 0.01
#: share of an image that may go in rounding sizes to what the encoder takes
CROP_SLACK: Final = 0.02


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Results of the earlier stages, as JSON."""

    plan: Json
    prepared: Json
    extension: Json
    encoded: Json
    file_id: str
    facts: Json


def output_of(job: Job, profile: Profile, video: str, made: Ingredients) -> Json:
    """`{"video", "output_meta": {"inputs", "outputs"}}` in the shape of the hosted app, with true numbers."""
    meta = {"inputs": _inputs(made.prepared), "outputs": [_video_meta(job, profile, made)]}
    return {"video": video, "output_meta": meta}


def task_type(roles: set[str]) -> str:
    """The hosted app's name for what is done; "text" when no picture is given."""
    if "first_clip" in roles:
        return "continuation"
    if "first_frame" not in roles:
        return "text"
    return "first+last frame" if "last_frame" in roles else "first frame"


def _video_meta(job: Job, profile: Profile, made: Ingredients) -> Json:
    plan = RenderPlan.from_json(made.plan)
    facts = made.facts
    return {
        "type": "video",
        "width": facts["width"],
        "height": facts["height"],
        "resolution_mp": round(facts["width"] * facts["height"] / 1e6, 4),
        "resolution": job.input["resolution"].lower(),
        "seconds": facts["seconds"],
        "fps": facts["fps"],
        "extra": {
            "task_type": task_type(set(made.prepared["files"])),
            **_ending_facts(plan, set(made.prepared["files"])),
            "model": profile.name,
            "preset": profile.preset,
            "weights": profile.weights,
            **_set_facts(job, profile),
            "seed": plan.seed,
            "frames": facts["frames"],
            **_rate_facts(plan),
            "sampled_width": plan.sample_width,
            "sampled_height": plan.sample_height,
            "sampled_frames": plan.sample_frames,
            **_route_facts(plan),
            **_clip_facts(plan),
            **_chain_facts(plan, facts),
            **_segment_facts(plan, facts),
            **_window_facts(plan),
            "sampler": plan.sampler,
            "steps": len(plan.sigmas) - 1,
            "shift": plan.shift,
            "guidance_scale": [plan.guidance_high, plan.guidance_low],
            "has_audio": facts["has_audio"],
            "watermark": plan.watermark,
            "prompt": plan.prompt,
            "negative_prompt": plan.negative_prompt if made.encoded["negative_used"] else None,
            "placement": _placement(made.encoded.get("placement")),
            "prompt_extend": made.extension,
            "not_honoured": not_honoured(job, made, plan),
            "beyond_training": list(beyond_training(profile, plan)),
        },
    }


def not_honoured(job: Job, made: Ingredients, plan: RenderPlan) -> list[str]:
    """Sentences on everything that was asked for and not done, or done otherwise."""
    notes = [*job.not_honoured, *made.prepared["notes"]]
    if made.extension["note"]:
        notes.append(made.extension["note"])
    for field, key in (("prompt", "prompt"), ("negative_prompt", "negative")):
        if (dropped := made.encoded[f"{key}_tokens_dropped"]) and job.input.get(field):
            notes.append(
                f"input.{field}: the text encoder does not read that far; the last {dropped} tokens were left out"
            )
    if job.input.get("negative_prompt") and not made.encoded["negative_used"]:
        notes.append(f"input.negative_prompt: model {plan.model} runs at guidance scale 1, where it has no effect")
    if (plan.sample_width, plan.sample_height) != (plan.width, plan.height):
        notes.append(
            f"input.resolution: the model worked at {plan.sample_width}x{plan.sample_height}; "
            f"the frames were brought to {plan.width}x{plan.height}"
        )
    notes += _crop_notes(made.prepared["probes"], plan)
    if sound := made.prepared["probes"].get("driving_audio"):
        notes += _sound_notes(sound["seconds"], plan)
    if clip := made.prepared["probes"].get("first_clip"):
        notes += _clip_notes(clip, made.facts, plan)
    return notes


def _set_facts(job: Job, profile: Profile) -> Json:
    """Additions to the weights, and why models that the server prefers were not taken."""
    facts: Json = {}
    if profile.loras:
        facts["loras"] = [f"{lora.repository}/{lora.file}" for lora in profile.loras]
    if passed_over := job.options.get("passed_over"):
        facts["passed_over"] = passed_over
    return facts


def _placement(chosen: Json | None) -> Json | None:
    """How the weights were kept, and the memory in bytes that was predicted for each stage."""
    if chosen is None:  # of a job that an earlier version encoded
        return None
    predicted = {name: stage["weights"] + stage["activations"] for name, stage in chosen["stages"].items()}
    return {"mode": chosen["mode"], "predicted_bytes": predicted, "free_bytes": chosen["free_device"]}


def _clip_facts(plan: RenderPlan) -> Json:
    """How much of a continued video is the clip, how much of its end the model was shown, and where it still shows."""
    names = ("clip_frames", "prefix_frames", "handover_frames")
    return {name: getattr(plan, name) for name in names} if plan.clip_frames else {}


def _route_facts(plan: RenderPlan) -> Json:
    """Whether the video was sampled at its size from the start, or refined from a smaller sample."""
    if plan.refine is None:
        return {"route": "direct"}
    spec = plan.refine
    small = f"{spec.sample_width}x{spec.sample_height}"
    return {
        "route": "refine",
        "refined_from": small,
        "refine_strength": round(spec.sigmas[0], 4),
        "refine_steps": len(spec.sigmas) - 1,
    }


def _rate_facts(plan: RenderPlan) -> Json:
    """The rate that the model works at, and how its frames became those of the file."""
    if plan.output_fps is None:
        return {"native_fps": plan.fps}
    return {"native_fps": plan.fps, "native_frames": plan.frames, "interpolation": "minterpolate"}


def _chain_facts(plan: RenderPlan, facts: Json) -> Json:
    """How a video was put together out of clips, and which of its frames heard what."""
    if plan.clips is None:
        return {}
    spec, clips = plan.clips.spec, plan.clips.clips
    told = [
        {
            "frames": [clip.start, clip.stop],
            "sampled_frames": clip.sampled,
            "seed": clip.seed,
            "motion_frames": spec.motion_frames if clip.number else 0,
        }
        for clip in clips
    ]
    # frame k of the video hears the sound at k / fps seconds, in every clip
    heard = {"seconds": facts["audio_seconds"], "offset_frames": 0}
    return {"sampled_frames": sum(clip.sampled for clip in clips), "clips": told, "driving_audio": heard}


def _segment_facts(plan: RenderPlan, facts: Json) -> Json:
    """How a video was put together out of samples that go on from each other."""
    if len(plan.segments) < 2 or plan.chaining is None:
        return {}
    seams = facts.get("seams", [])
    told = [
        {
            "frames": [segment.start, segment.stop],
            "sampled_frames": segment.sampled,
            "seed": segment.seed,
            "overlap_frames": segment.prefix_frames,
            "carried_latents": segment.carried,
            **(seam or {}),
        }
        for segment, seam in zip_longest(plan.segments, [None, *seams])
    ]
    sampled = sum(segment.sampled for segment in plan.segments)
    return {"sampled_frames": sampled, "chaining": plan.chaining.name, "segments": told}


def _window_facts(plan: RenderPlan) -> Json:
    """Which frames of the video each forward saw, where it did not see all of them."""
    if plan.windowing is None:
        return {}
    seen = [frames_of(window) for window in plan.windows]
    told = [{"frames": [frames.start, min(frames.stop, plan.frames)]} for frames in seen]
    overlap_frames = TEMPORAL_STRIDE * plan.windowing.overlap
    return {"chaining": "windows", "windows": told, "overlap_frames": overlap_frames}


def _ending_facts(plan: RenderPlan, roles: set[str]) -> Json:
    """How a chain of clips came to end on a picture: which frames [start, stop) were steered, which show it still."""
    if plan.clips is None or "last_frame" not in roles:
        return {}
    steered, still = plan.clips.steered, plan.clips.still
    told = {
        "steered_frames": [steered.start, steered.stop],
        "still_frames": [still.start, still.stop],
        "how": "the model does not know last frames; its estimates of the last clip were led to this one",
    }
    return {"last_frame": told}


def _clip_notes(clip: Json, facts: Json, plan: RenderPlan) -> list[str]:
    notes = []
    if clip["fps"] and abs(clip["fps"] / plan.shown_fps - 1) > RATE_SLACK:
        notes.append(
            f"input.first_clip: has {clip['fps']:g} frames per second, the video has {plan.shown_fps}; "
            "frames of it were left out or shown twice"
        )
    if clip["has_audio"] and facts["audio_seconds"] < plan.seconds - SOUND_SLACK_S:
        notes.append(
            f"input.first_clip: its sound ends after {facts['audio_seconds']:.1f} s; the rest of the video is silent"
        )
    return notes


def _crop_notes(probes: Json, plan: RenderPlan) -> list[str]:
    """Pictures of another shape than the video are scaled to fill it and lose their edges."""
    notes = []
    for role in VISUAL:
        if probe := probes.get(role):
            shown = probe["width"] / probe["height"] * plan.height / plan.width
            lost = 1 - min(shown, 1 / shown)
            if lost > CROP_SLACK:
                notes.append(f"input.{role}: has another shape than the video; {lost:.0%} of it was cut off")
    return notes


def _sound_notes(sound_s: float, plan: RenderPlan) -> list[str]:
    if sound_s < plan.seconds - SOUND_SLACK_S:
        rest = " and the model hears silence there" if plan.chain else ""
        return [f"input.driving_audio: ends after {sound_s:.1f} s; the rest of the video is silent{rest}"]
    if sound_s > plan.seconds + SOUND_SLACK_S:
        return [f"input.driving_audio: has {sound_s:.1f} s; it was cut to the {plan.seconds} s of the video"]
    return []


def _inputs(prepared: Json) -> list[Json]:
    return [_input_meta(role, Probe.from_json(probe)) for role, probe in prepared["probes"].items()]


def _input_meta(role: str, probe: Probe) -> Json:
    meta: Json = {"type": probe.kind, "extra": {"role": role, "format": probe.format}}
    if probe.width and probe.height:
        meta |= {"width": probe.width, "height": probe.height}
        meta |= {"resolution_mp": round(probe.width * probe.height / 1e6, 4)}
    if probe.kind == "image":
        meta["count"] = 1
    if probe.seconds is not None:
        meta["seconds"] = round(probe.seconds, 3)
    if probe.sample_rate and probe.kind == "audio":
        meta["sample_rate"] = probe.sample_rate
    return meta
